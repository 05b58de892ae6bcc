"""The bilinear resize of the eager definitions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resizes maps (N,K,h,w) to (N,K,*size), bilinear, as ``F.interpolate`` does."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
