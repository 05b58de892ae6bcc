"""focal_pool in plain PyTorch: the definition, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vss_kernels._runtime.precision import accumulation_dtype


def window_side(positions: int) -> int:
    """Returns the side of a square of ``positions``; if that is no square, the next larger side.

    A loop rather than ``math.isqrt``, which torch.compile cannot trace for a symbolic size.
    """
    side = 0
    while side * side < positions:
        side += 1
    return side


def focal_pool(x: Tensor, weight: Tensor, bias: Tensor, cells: tuple[int, int]) -> Tensor:
    """Bilinear resize to whole sub-windows, then one learned weighted sum over each of them."""
    batch, height, width, channels = x.shape
    rows, columns = cells
    side = window_side(weight.shape[0])
    compute = x.to(accumulation_dtype(x.dtype))
    grid = compute.permute(0, 3, 1, 2)  # [B, C, H, W]
    if (height, width) != (rows * side, columns * side) and x.numel() > 0:
        grid = F.interpolate(
            grid, size=(rows * side, columns * side), mode="bilinear", align_corners=False
        )
    if x.numel() == 0:
        # Made of the input, so that it gets a gradient.
        grid = grid.sum((2, 3), keepdim=True).expand(-1, -1, rows * side, columns * side)
    windows = grid.reshape(batch, channels, rows, side, columns, side)
    kernel = weight.to(compute.dtype).reshape(side, side)
    pooled = (windows * kernel[:, None, :]).sum(dim=(3, 5)) + bias.to(compute.dtype)
    return pooled.permute(0, 2, 3, 1).to(x.dtype).contiguous()  # [B, ch, cw, C]
