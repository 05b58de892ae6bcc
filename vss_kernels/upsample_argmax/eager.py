"""Upsampling and the choice of a class in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels._runtime.resize import resize


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    through: tuple[int, int] | None,
    confidence: bool,
    align_corners: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The class of the largest logit after one or two bilinear resizes."""
    upsampled = logits.detach().to(accumulation_dtype(logits.dtype))
    if through is not None:
        upsampled = resize(upsampled, through, align_corners)
    upsampled = resize(upsampled, size, align_corners)  # (N, K, H, W)
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int64
    classes = upsampled.argmax(dim=1).to(dtype)  # (N, H, W)
    if not confidence:
        return classes
    probability = (upsampled.amax(dim=1) - upsampled.logsumexp(dim=1)).exp()
    return classes, probability.float()
