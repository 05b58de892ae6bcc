"""Sum of a pyramid's levels at the size of the first, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels._runtime.resize import resize


def fuse_pyramid(first: Tensor, others: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Resizes every other level to the size of the first (bilinear) and adds them."""
    wide = accumulation_dtype(first.dtype)
    height, width = first.shape[-2:]
    # A copy where nothing is added: the result must not share memory with an input.
    total = first.to(wide) if others else first.clone()
    for level in others:
        total = total + resize(level.to(wide), (height, width), align_corners)
    return total.to(first.dtype).contiguous()  # (N, E, h, w)
