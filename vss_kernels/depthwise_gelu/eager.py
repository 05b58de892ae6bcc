"""3x3 depthwise convolution, bias and exact GELU, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vss_kernels._runtime.precision import accumulation_dtype


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves each channel by itself, adds the bias and applies GELU."""
    wide = accumulation_dtype(x.dtype)
    maps = x.to(wide).permute(0, 3, 1, 2)  # (B, C, H, W)
    mixed = F.conv2d(maps, weight.to(wide), bias.to(wide), padding=1, groups=x.shape[3])
    return F.gelu(mixed).permute(0, 2, 3, 1).to(x.dtype).contiguous()
