"""focal_attention in plain PyTorch: rolls, windows and unfolds, as CFFM describes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels.focal_attention.geometry import PADDING_LOGIT, FocalGeometry, PooledLevel


def _windows(x: Tensor, side: int) -> Tensor:
    """Splits (B,H,W,heads,D) into (B,rows,columns,heads,side,side,D)."""
    return x.unfold(1, side, side).unfold(2, side, side).permute(0, 1, 2, 3, 5, 6, 4)


def _outside(windows: Tensor, shift: tuple[int, int]) -> list[Tensor]:
    """The positions of rolled windows that lie outside the window rolled from, row-major."""
    side, (down, right) = windows.shape[-2], shift
    outside_columns = slice(side + right, side) if right < 0 else slice(0, right)
    if down < 0:
        split = side + down
        parts = [windows[..., :split, outside_columns, :], windows[..., split:, :, :]]
    else:
        parts = [windows[..., :down, :, :], windows[..., down:, outside_columns, :]]
    return [part.flatten(4, 5) for part in parts]


def _unfold(x: Tensor, level: PooledLevel) -> Tensor:
    """Takes from (B,cells,cells,heads,D) each window's cells: (B,rows,columns,heads,k*k,D)."""
    reach = level.kernel // 2
    padded = F.pad(x, (0, 0, 0, 0, reach, reach, reach, reach))
    cells = padded.unfold(1, level.kernel, level.stride).unfold(2, level.kernel, level.stride)
    return cells.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)


def _gather(x: Tensor, pooled: Sequence[Tensor], geometry: FocalGeometry) -> Tensor:
    """Collects what every window sees: (B,rows,columns,heads,L,D)."""
    side = geometry.window
    parts = [_windows(x, side).flatten(4, 5)]
    for shift in geometry.shifts():
        parts += _outside(_windows(x.roll(shift, (1, 2)), side), shift)
    parts += [_unfold(level, how) for level, how in zip(pooled, geometry.pooled, strict=True)]
    return torch.cat(parts, dim=4)


def _padding_logits(like: Tensor, pooled: Sequence[Tensor], geometry: FocalGeometry) -> Tensor:
    """What to add to the logits of each window's keys: (rows,columns,1,1,L)."""
    rows, columns = like.shape[1:3]
    unpadded = geometry.window**2 + geometry.around_keys
    parts = [like.new_zeros(rows, columns, unpadded)]
    for level, how in zip(pooled, geometry.pooled, strict=True):
        cells = like.new_ones(1, *level.shape[1:3], 1, 1)
        inside = _unfold(cells, how).reshape(rows, columns, how.kernel**2)
        parts.append((1 - inside) * PADDING_LOGIT)
    return torch.cat(parts, dim=-1)[:, :, None, None]


def focal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooled: Sequence[tuple[Tensor, Tensor]],
    bias: Tensor,
    geometry: FocalGeometry,
) -> Tensor:
    """Attention of each window's queries over its own, surrounding and pooled keys."""
    batch, height, width, heads, dim = query.shape
    wide = accumulation_dtype(query.dtype)
    pooled_keys = [level[0] for level in pooled]
    pooled_values = [level[1] for level in pooled]
    queries = _windows(query * dim**-0.5, geometry.window).flatten(4, 5)  # (B, r, c, heads, w*w, D)
    keys = _gather(key, pooled_keys, geometry)  # (B, r, c, heads, L, D)
    values = _gather(value, pooled_values, geometry)

    logits = (queries @ keys.mT).to(wide) + bias.to(wide)  # (B, r, c, heads, w*w, L)
    logits = logits + _padding_logits(logits, pooled_keys, geometry)
    attended = logits.softmax(dim=-1).to(value.dtype) @ values  # (B, r, c, heads, w*w, D)

    side = geometry.window
    attended = attended.unflatten(4, (side, side)).permute(0, 1, 4, 2, 5, 3, 6)
    return attended.reshape(batch, height, width, heads, dim).contiguous()
