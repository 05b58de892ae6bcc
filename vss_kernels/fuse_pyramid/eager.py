"""Sum of a pyramid's levels at the size of the first, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vss_kernels._runtime.precision import accumulation_dtype


def fuse_pyramid(first: Tensor, *others: Tensor) -> Tensor:
    """Resizes every other level to the size of the first (bilinear) and adds them."""
    wide = accumulation_dtype(first.dtype)
    # A copy where nothing is added: the result must not share memory with an input.
    total = first.to(wide) if others else first.clone()
    for level in others:
        total = total + F.interpolate(
            level.to(wide), size=first.shape[-2:], mode="bilinear", align_corners=False
        )
    return total.to(first.dtype).contiguous()  # (N, E, h, w)
