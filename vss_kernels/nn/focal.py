"""CFFM's attention and block as modules around the operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.geometry import (
    FocalGeometry,
    check_windows,
    focal_geometry,
    relative_position_index,
)
from vss_kernels.focal_pool import focal_pool
from vss_kernels.nn.bias_tables import invert_index, look_up
from vss_kernels.nn.linear import TokenLinear, token_linear
from vss_kernels.nn.norm import add_norm


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


class FocalAttention(nn.Module):
    """Multi-head attention of the target's windows over near, pooled and past context.

    Args:
        dim: Channels C.
        num_heads: Number of heads; divides ``dim``.
        geometry: Which keys a window sees; ``None`` for CFFM's.

    Attributes:
        prepared_bias: A list with the result of :meth:`bias` to use, or ``None`` to look the biases
            up in every call.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Example:
        >>> attention = vss_kernels.nn.FocalAttention(64, num_heads=8)
        >>> target = torch.randn(1, 14, 21, 64)
        >>> cells = attention.geometry.pooled_cells((2, 3))
        >>> attention(target, [torch.randn(1, *size, 64) for size in cells]).shape
        torch.Size([1, 14, 21, 64])
    """

    def __init__(self, dim: int, num_heads: int = 8, geometry: FocalGeometry | None = None) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"FocalAttention: num_heads must divide dim {dim}, got num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.geometry = FocalGeometry() if geometry is None else geometry
        side = self.geometry.window
        self.qkv = TokenLinear(dim, 3 * dim)
        self.proj = TokenLinear(dim, dim)
        # The published start: only the table of a window's own positions is zero.
        self.window_bias = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))
        self.around_bias = _table(1, num_heads, side**2, self.geometry.around_keys)
        self.pooled_bias = nn.ParameterList(
            [_table(num_heads, (side + level.kernel - 1) ** 2) for level in self.geometry.pooled]
        )
        self.bias_index: Tensor
        self.bias_places: Tensor
        index, common_entries = self._bias_index()
        self._ring = slice(side**2, side**2 + self.geometry.around_keys)
        places = invert_index(index, common_entries, self._ring)
        self.register_buffer("bias_index", index, persistent=False)
        self.register_buffer("bias_places", places, persistent=False)
        self.prepared_bias: list[Tensor] | None = None

    def _bias_index(self) -> tuple[Tensor, int]:
        """The entry of each query and key in all tables side by side, the ring's table last.

        Also returns how many entries come before the ring's.
        """
        side, ring = self.geometry.window, self.geometry.around_keys
        start = (2 * side - 1) ** 2
        pooled = []
        for level in self.geometry.pooled:
            pooled.append(start + relative_position_index(side, level.kernel))
            start += (side + level.kernel - 1) ** 2
        around = start + torch.arange(side**2 * ring).view(side**2, ring)
        return torch.cat([relative_position_index(side, side), around, *pooled], dim=1), start

    def bias(self) -> Tensor:
        """Returns the bias of every query and key of a window, (heads, window ** 2, L)."""
        tables = [self.window_bias]
        for table in self.pooled_bias:  # one by one, as torch.compile traces it
            tables.append(table)
        return look_up(tables, self.around_bias, self.bias_index, self.bias_places, self._ring)

    def forward(self, target: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Attends from every position of the target.

        Args:
            target: Normalised target map (B, H, W, C), H and W multiples of the window.
            pooled: The pooled maps (B, cells, cells, C): the target's, then each reference's.

        Returns:
            Map of shape (B, H, W, C), after the output projection.
        """
        height, width = target.shape[1:3]
        windows = check_windows("FocalAttention", height, width, self.geometry)
        sizes = [tuple(level.shape[1:3]) for level in pooled]
        if sizes != self.geometry.pooled_cells(windows):
            raise ValueError(
                f"FocalAttention: pooled must have {self.geometry.pooled_cells(windows)} cells for "
                f"a target of {height} x {width} positions, got {sizes}"
            )
        bias = self.bias() if self.prepared_bias is None else self.prepared_bias[0]
        attended = attend_maps(target, pooled, self.qkv, bias, self.num_heads, self.geometry)
        return self.proj(attended)


def assemble_bias(
    window_table: Tensor,
    window_index: Tensor,
    around: Tensor,
    pooled: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Looks the biases of all keys of a window up in their tables.

    Args:
        window_table: Biases of the window's own keys, ((2 * window - 1) ** 2, heads).
        window_index: Rows of ``window_table``, (window ** 2, window ** 2).
        around: Biases of the ring around the window, (1, heads, window ** 2, ring).
        pooled: For each pooled map its table (heads, (window + kernel - 1) ** 2) and the index
            into it, (window ** 2, kernel ** 2).

    Returns:
        The biases, (heads, window ** 2, L).
    """
    parts = [window_table.T[:, window_index], around[0]]
    parts += [table[:, index] for table, index in pooled]
    return torch.cat(parts, dim=-1)


def attend_maps(
    target: Tensor,
    pooled: Sequence[Tensor],
    qkv: nn.Linear,
    bias: Tensor,
    num_heads: int,
    geometry: FocalGeometry,
) -> Tensor:
    """Projects the maps and attends from the target to all of them.

    Args:
        target: Target map (B, H, W, C), H and W multiples of the window.
        pooled: The pooled maps (B, cells, cells, C): the target's, then each reference's.
        qkv: Projection to queries, keys and values, in this order, 3 * C rows.
        bias: Biases (heads, window ** 2, L).
        num_heads: Number of heads.
        geometry: Which keys a window sees.

    Returns:
        Map of shape (B, H, W, C), before an output projection.
    """
    dim = target.shape[-1]
    # Pooled tokens are only looked at, so their queries are not computed.
    tokens = torch.cat([level.flatten(1, 2) for level in (target, *pooled)], dim=1)
    # Split, not sliced: the gradients of two slices would be framed by zeros and added.
    parts = [dim, qkv.weight.shape[0] - dim]
    query_weight, key_value_weight = qkv.weight.split(parts)
    query_bias, key_value_bias = (None, None) if qkv.bias is None else qkv.bias.split(parts)
    query = token_linear(target, query_weight, query_bias)
    key_value = token_linear(tokens, key_value_weight, key_value_bias)
    attended = attend_tokens(
        query.unflatten(-1, (num_heads, -1)),
        key_value.unflatten(-1, (2, num_heads, -1)),
        bias,
        geometry,
    )
    return attended.flatten(-2)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class FocalBlock(nn.Module):
    """One block of CFFM: updates the target frame with context from itself and its references.

    Args:
        dim: Channels C.
        num_heads: Number of attention heads.
        window: Side of a window.
        expand: How far the ring of keys around a window reaches.
        mlp_ratio: Hidden channels of the MLP as a multiple of ``dim``.
        reference_levels: Cells per window and side to which each reference is pooled, oldest
            reference first; there are as many references as levels.
        reference_kernels: Side of the square of cells seen of each reference.
        target_kernel: Side of the square of pooled target windows seen.

    Raises:
        ValueError: A setting is out of range, or levels and kernels are not equally many.

    Example:
        >>> block = vss_kernels.nn.FocalBlock(64, num_heads=8)
        >>> block(torch.randn(1, 15, 27, 64), torch.randn(1, 3, 15, 27, 64)).shape
        torch.Size([1, 15, 27, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window: int = 7,
        expand: int = 3,
        mlp_ratio: float = 4.0,
        reference_levels: Sequence[int] = (1, 2, 3),
        reference_kernels: Sequence[int] = (7, 5, 3),
        target_kernel: int = 5,
    ) -> None:
        super().__init__()
        for level in reference_levels:
            if not 1 <= level <= window:
                raise ValueError(
                    f"FocalBlock: every reference level must be between 1 and the window {window}, "
                    f"got {tuple(reference_levels)}"
                )
        geometry = focal_geometry(
            window, expand, reference_levels, reference_kernels, target_kernel
        )
        self.norm1 = nn.LayerNorm(dim)
        self.target_pool = _pooling(window)
        self.reference_pools = nn.ModuleList(
            [_pooling(window // level) for level in reference_levels]
        )
        self.attention = FocalAttention(dim, num_heads, geometry)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, target: Tensor, references: Tensor) -> Tensor:
        """Updates the target.

        Args:
            target: Target map (B, H, W, C) of any size.
            references: Reference maps (B, R, H, W, C), oldest first.

        Returns:
            Target map (B, H, W, C).

        Raises:
            ValueError: There are not as many references as the block has levels, or the sizes of
                target and references differ.
        """
        count = len(self.reference_pools)
        batch, height, width, dim = target.shape
        if references.shape != (batch, count, height, width, dim):
            raise ValueError(
                f"FocalBlock: references must have shape {(batch, count, height, width, dim)} for "
                f"a target of shape {tuple(target.shape)}, got {tuple(references.shape)}"
            )
        # All frames at once, one after the other, so that each is contiguous.
        frames = self._normalise(torch.cat([target[None], references.transpose(0, 1)]))
        normed, *_ = maps = frames.unbind(0)
        pools = [self.target_pool, *self.reference_pools]
        geometry = self.attention.geometry
        windows = check_windows("FocalBlock", normed.shape[1], normed.shape[2], geometry)
        pooled = [
            focal_pool(frame, pool.weight.flatten(), pool.bias.reshape(()), cells)
            for frame, pool, cells in zip(maps, pools, geometry.pooled_cells(windows), strict=True)
        ]
        attended = self.attention(normed, pooled)[:, :height, :width]
        norm = self.norm2
        target, normed = add_norm(target, norm.weight, norm.bias, attended, eps=norm.eps)
        return target + self.mlp(normed)

    def _normalise(self, frames: Tensor) -> Tensor:
        """Normalises frames (..., H, W, C); pads zeros, right and bottom, to whole windows."""
        side, norm = self.attention.geometry.window, self.norm1
        height, width = frames.shape[-3:-1]
        _, normed = add_norm(frames, norm.weight, norm.bias, eps=norm.eps)
        if height % side == 0 and width % side == 0:
            return normed
        return F.pad(normed, (0, 0, 0, -width % side, 0, -height % side))


def _pooling(side: int) -> nn.Linear:
    """The weights of one learned pooling, which starts as a mean."""
    pooling = nn.Linear(side**2, 1)
    nn.init.constant_(pooling.weight, 1 / side**2)
    nn.init.zeros_(pooling.bias)
    return pooling
