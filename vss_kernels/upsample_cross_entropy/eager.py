"""Upsampling and cross-entropy in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels._runtime.resize import resize


def upsample_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    """Cross-entropy, at the size of the labels, of bilinearly upsampled logits."""
    height, width = labels.shape[-2:]
    upsampled = resize(logits.to(accumulation_dtype(logits.dtype)), (height, width), align_corners)
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
