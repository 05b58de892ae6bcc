"""Which keys a window of CFFM's attention sees, and where they are.

The keys of one window come, in this order, from the window itself, from a ring around it (four
rolled copies of the map), and from a square of cells in each pooled map. All of it follows from
three small settings, held by :class:`FocalGeometry`; this file turns them into counts, positions
and the indices of relative-position bias tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1
"""Position in a key table of a key that lies in the zero padding of a pooled map."""

PADDING_LOGIT = -100.0
"""Added to the logit of such a key, whose key and value are zero."""


class PooledLevel(NamedTuple):
    """How a window looks at one pooled map.

    Attributes:
        kernel: Side, in cells, of the square of cells seen; odd.
        stride: Cells per window and side; the pooled map has ``stride`` times as many rows and
            columns as there are windows.

    Example:
        >>> vss_kernels.PooledLevel(kernel=5, stride=1)
        PooledLevel(kernel=5, stride=1)
    """

    kernel: int
    stride: int


@dataclass(frozen=True)
class FocalGeometry:
    """The settings that fix which keys a window sees; the defaults are CFFM's (289 keys).

    Attributes:
        window: Side of a window in positions.
        expand: How far, in positions, the ring around a window reaches.
        pooled: The pooled maps: the target's own, then one for each reference.

    Raises:
        ValueError: A size is out of range, or a kernel is even.

    Example:
        >>> geometry = vss_kernels.FocalGeometry()
        >>> geometry.num_keys  # 49 own, 132 around, 25 + 49 + 25 + 9 pooled
        289
        >>> geometry.pooled_cells((2, 3))
        [(2, 3), (2, 3), (4, 6), (6, 9)]
    """

    window: int = 7
    expand: int = 3
    pooled: tuple[PooledLevel, ...] = (
        PooledLevel(5, 1),
        PooledLevel(7, 1),
        PooledLevel(5, 2),
        PooledLevel(3, 3),
    )

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"FocalGeometry: window must be at least 1, got {self.window}")
        if not 0 <= self.expand <= self.window:
            raise ValueError(
                f"FocalGeometry: expand must be between 0 and the window's side {self.window}, "
                f"got {self.expand}"
            )
        for position, (kernel, stride) in enumerate(self.pooled):
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(
                    f"FocalGeometry: pooled[{position}].kernel must be odd and positive, "
                    f"got {kernel}"
                )
            if stride < 1:
                raise ValueError(
                    f"FocalGeometry: pooled[{position}].stride must be at least 1, got {stride}"
                )

    @property
    def around_keys(self) -> int:
        """Number of keys in the ring around a window; the corners count twice or more."""
        inside = self.window - self.expand
        return 4 * (self.window**2 - inside**2)

    @property
    def num_keys(self) -> int:
        """Number of keys L that each query of a window sees, padded ones included."""
        pooled_keys = sum(level.kernel**2 for level in self.pooled)
        return self.window**2 + self.around_keys + pooled_keys

    def shifts(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns by which the map is rolled (as ``torch.roll``), in key order."""
        reach = self.expand
        return ((-reach, -reach), (-reach, reach), (reach, -reach), (reach, reach))

    def pooled_cells(self, windows: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of every pooled map for a grid of windows."""
        rows, columns = windows
        return [(rows * level.stride, columns * level.stride) for level in self.pooled]


def key_table(
    geometry: FocalGeometry,
    windows: tuple[int, int],
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of every window's keys in one buffer of tokens.

    The buffer holds the target's tokens (row-major), then those of each pooled map in turn. The
    attention of a window is plain attention of its queries over the tokens of its row.

    Args:
        geometry: The settings.
        windows: Rows and columns of windows in the (padded) map.
        device: Where to put the table.

    Returns:
        int32 tensor of shape (windows, L), windows row-major, with :data:`PADDING` for the keys in
        the zero padding of a pooled map.
    """
    rows, columns = windows
    side = geometry.window
    height, width = rows * side, columns * side
    top = torch.arange(rows, device=device).mul(side).repeat_interleave(columns)[:, None]
    left = torch.arange(columns, device=device).mul(side).repeat(rows)[:, None]  # (windows, 1)

    offsets = [(y, x) for y in range(side) for x in range(side)]
    for shift_y, shift_x in geometry.shifts():
        offsets += [
            (y - shift_y, x - shift_x)
            for y in range(side)
            for x in range(side)
            if not (0 <= y - shift_y < side and 0 <= x - shift_x < side)
        ]
    down, right = torch.tensor(offsets, device=device).reshape(-1, 2).unbind(1)
    # The map is rolled, so what leaves it at one border comes back at the opposite one.
    sections = [(top + down) % height * width + (left + right) % width]

    first = height * width
    for level, (cell_rows, cell_columns) in zip(
        geometry.pooled, geometry.pooled_cells(windows), strict=True
    ):
        reach = torch.arange(level.kernel, device=device) - level.kernel // 2
        y = top // side * level.stride + reach.repeat_interleave(level.kernel)
        x = left // side * level.stride + reach.repeat(level.kernel)  # (windows, kernel**2)
        inside = (y >= 0) & (y < cell_rows) & (x >= 0) & (x < cell_columns)
        sections.append(torch.where(inside, first + y * cell_columns + x, PADDING))
        first += cell_rows * cell_columns
    return torch.cat(sections, dim=1).to(torch.int32)


def relative_position_index(
    window: int, kernel: int, device: torch.device | str | None = None
) -> Tensor:
    """Rows of a relative-position bias table for the queries of a window and a square of keys.

    Args:
        window: Side of the window of queries.
        kernel: Side of the square of keys.
        device: Where to put the index.

    Returns:
        int64 tensor of shape (window**2, kernel**2) with values in [0, (window + kernel - 1)**2).
    """
    query = torch.arange(window, device=device)[:, None]
    key = torch.arange(kernel, device=device)
    distance = query - key + kernel - 1  # (window, kernel)
    index = distance[:, None, :, None] * (window + kernel - 1) + distance[None, :, None, :]
    return index.reshape(window**2, kernel**2)


def check_windows(
    operator: str, height: int, width: int, geometry: FocalGeometry
) -> tuple[int, int]:
    """Returns the grid of windows of a map.

    Raises:
        ValueError: A side is zero or no multiple of the window.
    """
    side = geometry.window
    if height < 1 or width < 1 or height % side or width % side:
        raise ValueError(
            f"{operator}: height and width must be positive multiples of the window {side}, "
            f"got {height} x {width}; pad the map first"
        )
    return height // side, width // side


def focal_geometry(
    window: int,
    expand: int,
    reference_levels: Sequence[int],
    reference_kernels: Sequence[int],
    target_kernel: int,
) -> FocalGeometry:
    """The geometry of CFFM with one pooled map for the target and one for each reference.

    Args:
        window: Side of a window in positions.
        expand: How far the ring around a window reaches.
        reference_levels: Cells per window and side of each reference, oldest first.
        reference_kernels: Side of the square of cells seen of each reference.
        target_kernel: Side of the square of pooled target windows seen.

    Raises:
        ValueError: There are not as many levels as kernels, or a size is out of range.
    """
    if len(reference_levels) != len(reference_kernels):
        raise ValueError(
            "reference_levels and reference_kernels must be equally many, one each per reference, "
            f"got {tuple(reference_levels)} and {tuple(reference_kernels)}"
        )
    levels = (
        PooledLevel(kernel, level)
        for kernel, level in zip(reference_kernels, reference_levels, strict=True)
    )
    return FocalGeometry(window, expand, (PooledLevel(target_kernel, 1), *levels))
