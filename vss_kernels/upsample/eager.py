"""Upsampling fused with the loss or with the choice of a class, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vss_kernels.precision import accumulation_dtype


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def upsample_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    reduction: str,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Cross-entropy, at the size of the labels, of bilinearly upsampled logits."""
    height, width = labels.shape[-2:]
    upsampled = _resize(logits.to(accumulation_dtype(logits.dtype)), (height, width))
    averaged_over_all = reduction == "mean_all"
    loss = F.cross_entropy(
        upsampled,  # (N, K, H, W)
        labels.long(),
        weight=class_weights,
        ignore_index=ignore_index,
        reduction="sum" if averaged_over_all else reduction,
        label_smoothing=label_smoothing,
    )
    return loss / max(labels.numel(), 1) if averaged_over_all else loss


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], through: tuple[int, int] | None, confidence: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """The class of the largest logit after one or two bilinear resizes."""
    upsampled = logits.detach().to(accumulation_dtype(logits.dtype))
    if through is not None:
        upsampled = _resize(upsampled, through)
    upsampled = _resize(upsampled, size)  # (N, K, H, W)
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int64
    classes = upsampled.argmax(dim=1).to(dtype)  # (N, H, W)
    if not confidence:
        return classes
    probability = (upsampled.amax(dim=1) - upsampled.logsumexp(dim=1)).exp()
    return classes, probability.float()
