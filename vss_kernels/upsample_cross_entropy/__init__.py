"""upsample_cross_entropy: a bilinear resize and the loss after it, in one.

The logits at the size of the image, the largest tensor of a segmentation model, need not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.checks import (
    check_logits,
    check_shape,
    check_size,
    check_tensor,
    values_are_checked,
)
from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels.upsample_cross_entropy.op import operator

__all__ = ["upsample_cross_entropy"]

REDUCTIONS = ("mean_all", "mean", "sum", "none")
_LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def upsample_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    reduction: str = "mean_all",
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits that are first upsampled to the size of the labels.

    The resize is bilinear with ``align_corners=False``. Everything else is as in
    ``torch.nn.functional.cross_entropy``, but for the reduction ``"mean_all"``: the sum divided by
    the number of all pixels, ignored ones included, with which MRCFA and CFFM were trained.

    Args:
        logits: Class scores of shape (N, K, h, w), float32, float16, bfloat16 or float64, any
            strides.
        labels: Classes of shape (N, H, W), uint8, int16, int32 or int64, each in [0, K) or equal to
            ``ignore_index``; any strides, also expanded.
        ignore_index: Label of the pixels that count as zero and get no gradient.
        reduction: ``"mean_all"``, ``"mean"`` (over the pixels that are not ignored, weighted by
            their class; NaN if there are none), ``"sum"`` or ``"none"``.
        class_weights: Weight of each class, shape (K,), float32 (float64 for float64 logits).
        label_smoothing: Share of the target probability spread over all classes, in [0, 1].

    Returns:
        Scalar tensor, or the losses (N, H, W) for ``"none"``, in float32 (float64 for float64
        logits): a sum over pixels overflows float16. No pixels at all give 0 for ``"mean_all"``.

    Raises:
        TypeError: An argument is no tensor or has an unsupported dtype.
        ValueError: A shape does not fit, an option is unknown or out of range, the devices
            differ, or a label is no class (checked on the CPU, and on a GPU under
            ``VSS_KERNELS_DEBUG=1``).
    """
    name = "upsample_cross_entropy"
    check_logits(name, logits)
    check_tensor(name, "labels", labels, "N,H,W")
    if labels.dtype not in _LABEL_DTYPES:
        raise TypeError(f"{name}: labels must be uint8, int16, int32 or int64, got {labels.dtype}")
    if labels.device != logits.device:
        raise ValueError(
            f"{name}: labels are on {labels.device} but logits are on {logits.device}; "
            "move them to one device"
        )
    check_shape(name, "labels", labels, (logits.shape[0], None, None))
    check_size(name, "labels' height and width", tuple(labels.shape[1:]))
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{name}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1], got {label_smoothing}")
    if class_weights is not None:
        check_tensor(name, "class_weights", class_weights, "K")
        check_shape(name, "class_weights", class_weights, (logits.shape[1],))
        wide = accumulation_dtype(logits.dtype)
        if class_weights.dtype != wide:
            raise TypeError(
                f"{name}: class_weights must be {wide} for {logits.dtype} logits, "
                f"got {class_weights.dtype}"
            )
        if class_weights.device != logits.device:
            raise ValueError(
                f"{name}: class_weights are on {class_weights.device} but logits are on "
                f"{logits.device}; move them to one device"
            )
    _check_labels(name, labels, logits.shape[1], ignore_index)
    return operator(logits, labels, ignore_index, reduction, class_weights, label_smoothing)


def _check_labels(name: str, labels: Tensor, classes: int, ignore_index: int) -> None:
    if not values_are_checked(labels):
        return
    values = labels.long()
    wrong = values[((values < 0) | (values >= classes)) & (values != ignore_index)]
    if wrong.numel() > 0:
        raise ValueError(
            f"{name}: labels must lie in [0, {classes}) or be the ignore_index {ignore_index}, "
            f"got {int(wrong[0])} ({wrong.numel()} such pixels)"
        )
