"""Key tables and their inverse, kept per geometry, grid of windows and device.

The key table lists, for each window, the tokens it looks at. Its inverse lists, for each token, the
windows that attend to it, so that the gradient of a key or value is gathered by whoever owns the
token instead of being scattered with atomics.

The inverse is laid out for a kernel that owns a *tile* of :data:`TILE` tokens: tokens seen by the
same windows lie in one tile, and the tile lists those windows, with the row of the transposed bias
that each of its tokens has there. Tiles with many windows are split into several *items* of work,
whose results are added up in a fixed order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vss_kernels.focal_attention.geometry import PADDING, FocalGeometry, key_table

TILE = 64
"""Tokens in a tile: a warp group's side of a product, and about what four windows see."""

LONGEST_ITEM = 12
"""Windows that one item of work visits."""

FEW_AND_MANY = (4, 16)
"""Most windows that see a token of the first and second class; see :func:`_rank_by_windows`."""

KEPT = 32
"""Tables of each kind that are kept; a published model needs one."""

Table = TypeVar("Table")


@dataclass(frozen=True)
class InverseTable:
    """Which windows attend to each token; all int32.

    Attributes:
        tokens: (tiles, TILE) tokens of each tile, :data:`PADDING` where it has fewer.
        sources: (rows, 2) the slots that a row of the transposed bias stands for. The first L rows
            stand for one slot each, the others for two that one token has in one window, whose
            probabilities add up; :data:`PADDING` for no second slot.
        windows: (entries,) windows that attend to a tile, tile after tile.
        rows: (entries, TILE) each token's row in that window, :data:`PADDING` where it has none. A
            token with more than two slots in one window has several entries.
        items: (items, 4) the tile of an item of work, its first entry, the end of its entries, and
            where its partial sum goes: :data:`PADDING` if it is the tile's only item and so
            writes the result itself.
        sums: (split tiles, 3) a tile with several items, its first partial sum, the end of them.
        num_parts: Number of partial sums.
    """

    tokens: Tensor
    sources: Tensor
    windows: Tensor
    rows: Tensor
    items: Tensor
    sums: Tensor
    num_parts: int


def invert(table: np.ndarray, num_tokens: int) -> InverseTable:
    """Inverts a key table (windows, L) over ``num_tokens`` tokens; the result is on the CPU."""
    window_of, slot_of = np.nonzero(table != PADDING)
    token_of = table[window_of, slot_of]
    order = np.argsort(token_of, kind="stable")  # by token, then window, then slot
    window_of, slot_of, token_of = window_of[order], slot_of[order], token_of[order]

    # Tokens with the same windows become neighbours, whatever map they belong to.
    ranked = _rank_by_windows(token_of, window_of, num_tokens)
    num_tiles = -(-num_tokens // TILE)
    tokens = np.full(num_tiles * TILE, PADDING, np.int32)
    tokens[:num_tokens] = ranked
    rank = np.empty(num_tokens, np.int64)
    rank[ranked] = np.arange(num_tokens)

    sources, row_of, window_of, token_of, repeat_of = _pair_slots(
        slot_of, window_of, token_of, table.shape[1]
    )
    tile_of, place_of = rank[token_of] // TILE, rank[token_of] % TILE

    # One entry for each window of a tile, and one more for each repetition in a token's list.
    repeats = int(repeat_of.max(initial=0)) + 1
    entries, entry_of = np.unique(
        (tile_of * len(table) + window_of) * repeats + repeat_of, return_inverse=True
    )
    rows = np.full((len(entries), TILE), PADDING, np.int32)
    rows[entry_of, place_of] = row_of
    tile_of_entry, window_of_entry = np.divmod(entries // repeats, len(table))

    items, sums, num_parts = _split(np.bincount(tile_of_entry, minlength=num_tiles))
    return InverseTable(
        torch.from_numpy(tokens.reshape(-1, TILE)),
        torch.from_numpy(sources),
        torch.from_numpy(window_of_entry.astype(np.int32)),
        torch.from_numpy(rows),
        torch.from_numpy(items),
        torch.from_numpy(sums),
        num_parts,
    )


def _pair_slots(
    slot_of: np.ndarray, window_of: np.ndarray, token_of: np.ndarray, num_slots: int
) -> tuple[np.ndarray, ...]:
    """Joins two slots that a token has in one window to one row of the transposed bias.

    Returns the rows' sources and, for each row that a token has in a window: the row, the window,
    the token, and how many the token has in that window before it.
    """
    windows = int(window_of.max(initial=0)) + 1
    repeat_of = _position_in_run(token_of.astype(np.int64) * windows + window_of)
    first = np.flatnonzero(repeat_of % 2 == 0)
    paired = np.append(repeat_of, 0)[first + 1] % 2 == 1
    left, right = slot_of[first], slot_of[np.minimum(first + 1, len(slot_of) - 1)]
    pairs, pair_of = np.unique(left[paired] * num_slots + right[paired], return_inverse=True)
    row_of = left.copy()
    row_of[paired] = num_slots + pair_of
    single = np.stack([np.arange(num_slots), np.full(num_slots, PADDING)], axis=1)
    joined = np.stack(np.divmod(pairs, num_slots), axis=1)
    sources = np.concatenate([single, joined]).astype(np.int32)
    return sources, row_of, window_of[first], token_of[first], repeat_of[first] // 2


def _position_in_run(values: np.ndarray) -> np.ndarray:
    """How many equal values stand directly before each one, in sorted ``values``."""
    places = np.arange(len(values))
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return places - np.repeat(starts, np.diff(starts, append=len(values)))


def _rank_by_windows(token_of: np.ndarray, window_of: np.ndarray, num_tokens: int) -> np.ndarray:
    """Tokens in the order of their lists of windows, as tuples compare; equal lists by token.

    Tokens that many windows see come after those that few see: between two neighbours of a window's
    own tokens they would bring all their windows into the tile.
    """
    place = _position_in_run(token_of)
    seen = np.bincount(token_of, minlength=num_tokens)
    lists = np.zeros((num_tokens, int(place.max(initial=0)) + 2), ">u4")  # 0 ends a list
    lists[:, 0] = np.searchsorted(FEW_AND_MANY, seen)
    lists[token_of, place + 1] = window_of + 1
    # As strings of big-endian bytes, whole lists are compared at once.
    return np.argsort(lists.view(f"S{lists.shape[1] * 4}")[:, 0], kind="stable")


def _split(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Divides the entries of each tile into items; see :class:`InverseTable` for both tables."""
    ends = np.cumsum(counts)
    pieces = np.maximum(1, -(-counts // LONGEST_ITEM))
    tile = np.repeat(np.arange(len(counts)), pieces)
    first = (ends - counts)[tile] + _position_in_run(tile) * LONGEST_ITEM
    is_part = (pieces > 1)[tile]
    part = np.where(is_part, np.cumsum(is_part) - 1, PADDING)
    items = np.stack([tile, first, np.minimum(first + LONGEST_ITEM, ends[tile]), part], axis=1)

    split = np.flatnonzero(pieces > 1)
    part_ends = np.cumsum(pieces[split])
    sums = np.stack([split, part_ends - pieces[split], part_ends], axis=1)
    return items.astype(np.int32), sums.astype(np.int32), int(is_part.sum())


def _on_another_thread(build: Callable[[], Table], device: torch.device) -> Table:
    """Builds a table for a GPU where no recording of this thread can claim its memory.

    A compiler that warms up for a CUDA graph directs the allocations of its thread to the memory of
    that graph, and takes a table that outlives the call there for an error.
    """

    def run() -> Table:
        with torch.inference_mode(False):  # it may serve a training step later
            table = build()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # other streams are to read it
        return table

    if device.type != "cuda":
        return run()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


class TableCache(Generic[Table]):
    """The most recently used tables of one kind.

    A table is built and copied to its device once; later calls return it without waiting for the
    device. A CUDA graph holds the addresses of the tables it was captured with, so a table handed
    out during a capture is kept for good, and none can be built then.
    """

    def __init__(self, build: Callable[[FocalGeometry, tuple[int, int], torch.device], Table]):
        self._build = build
        self._kept: OrderedDict[tuple[FocalGeometry, tuple[int, int], torch.device], Table]
        self._kept = OrderedDict()
        self._captured: dict[tuple[FocalGeometry, tuple[int, int], torch.device], Table] = {}
        self._lock = threading.Lock()

    def get(self, geometry: FocalGeometry, grid: tuple[int, int], device: torch.device) -> Table:
        """Returns the table for a grid of windows on a device.

        Raises:
            RuntimeError: A CUDA graph is being captured and the table has not been built before.
        """
        key = (geometry, grid, device)
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        with self._lock:
            table = self._kept.get(key)
            if table is None:
                table = self._captured.get(key)
            if table is None:
                if capturing:
                    raise RuntimeError(
                        "focal_attention: the key table of this size is not built yet and "
                        "cannot be while a CUDA graph is captured; run the same size once before"
                    )
                if len(self._kept) >= KEPT:
                    self._drop_oldest()
                table = _on_another_thread(lambda: self._build(geometry, grid, device), device)
            self._kept[key] = table
            self._kept.move_to_end(key)
            if capturing:
                self._captured[key] = table
            return table

    def _drop_oldest(self) -> None:
        (_, _, device), _ = next(iter(self._kept.items()))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # other streams may still be reading it
        self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


def _build_keys(geometry: FocalGeometry, grid: tuple[int, int], device: torch.device) -> Tensor:
    return key_table(geometry, grid).to(device)


def _build_inverse(
    geometry: FocalGeometry, grid: tuple[int, int], device: torch.device
) -> InverseTable:
    found = invert(key_table(geometry, grid).numpy(), num_tokens(geometry, grid))
    return InverseTable(
        found.tokens.to(device),
        found.sources.to(device),
        found.windows.to(device),
        found.rows.to(device),
        found.items.to(device),
        found.sums.to(device),
        found.num_parts,
    )


def num_tokens(geometry: FocalGeometry, grid: tuple[int, int]) -> int:
    """Tokens of the map and of all pooled maps together, for a grid of windows."""
    rows, columns = grid
    positions = rows * columns * geometry.window**2
    return positions + sum(cells * width for cells, width in geometry.pooled_cells(grid))


key_tables: TableCache[Tensor] = TableCache(_build_keys)
inverse_tables: TableCache[InverseTable] = TableCache(_build_inverse)
