"""The bilinear resize of the eager definitions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps (N,K,h,w) to (N,K,*size), bilinear, ``align_corners=False``."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
