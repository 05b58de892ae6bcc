"""upsample_cross_entropy: a bilinear resize and the loss after it, in one.

The logits at the size of the image, the largest tensor of a segmentation model, need not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.checks import (
    check_flag,
    check_integer,
    check_logits,
    check_shape,
    check_size,
    check_tensor,
    values_are_checked,
)
from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels.upsample_cross_entropy.op import operator

__all__ = ["upsample_cross_entropy"]

REDUCTIONS = ("mean", "mean_all", "sum", "none")
_LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def upsample_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """Cross-entropy of logits that are first upsampled to the size of the labels.

    Takes the place of ``F.cross_entropy(F.interpolate(input, target.shape[1:], mode="bilinear"),
    target, ...)``, with the names and defaults of ``torch.nn.functional.cross_entropy``. Beyond it
    there is the reduction ``"mean_all"``: the sum divided by the number of all pixels, ignored ones
    included, with which MRCFA and CFFM were trained.

    Args:
        input: Class scores of shape (N, K, h, w), float32, float16, bfloat16 or float64, any
            strides.
        target: Classes of shape (N, H, W), uint8, int16, int32 or int64, each in [0, K) or equal to
            ``ignore_index``; any strides, also expanded.
        weight: Weight of each class, shape (K,), float32 (float64 for float64 logits).
        ignore_index: Label of the pixels that count as zero and get no gradient.
        reduction: ``"mean"`` (over the pixels that are not ignored, weighted by their class; NaN if
            there are none), ``"mean_all"``, ``"sum"`` or ``"none"``.
        label_smoothing: Fraction of the target probability spread over all classes, in [0, 1].
        align_corners: Whether the centres of the corner pixels, not their corners, coincide in the
            resize, as in ``torch.nn.functional.interpolate``.

    Returns:
        Scalar tensor, or the losses (N, H, W) for ``"none"``, in float32 (float64 for float64
        logits): a sum over pixels overflows float16. No pixels at all give 0 for ``"mean_all"``.

    Raises:
        TypeError: An argument is no tensor or has an unsupported dtype.
        ValueError: A shape does not fit, an option is unknown or out of range, the devices
            differ, or a label is no class (checked on the CPU, and on a GPU under
            ``VSS_KERNELS_DEBUG=1``).

    Example:
        >>> logits = torch.randn(2, 19, 16, 16, requires_grad=True)
        >>> labels = torch.randint(19, (2, 64, 64))
        >>> labels[:, :8] = 255
        >>> loss = vss_kernels.upsample_cross_entropy(logits, labels, ignore_index=255)
        >>> upsampled = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear")
        >>> same = torch.nn.functional.cross_entropy(upsampled, labels, ignore_index=255)
        >>> torch.allclose(loss, same)
        True
    """
    name = "upsample_cross_entropy"
    check_logits(name, input, "input")
    check_tensor(name, "target", target, "N,H,W")
    if target.dtype not in _LABEL_DTYPES:
        raise TypeError(f"{name}: target must be uint8, int16, int32 or int64, got {target.dtype}")
    if target.device != input.device:
        raise ValueError(
            f"{name}: target is on {target.device} but input is on {input.device}; "
            "move them to one device"
        )
    check_shape(name, "target", target, (input.shape[0], None, None))
    check_size(name, "target's height and width", tuple(target.shape[1:]))
    check_integer(name, "ignore_index", ignore_index)
    check_flag(name, "align_corners", align_corners)
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{name}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
        )
    if not isinstance(label_smoothing, int | float):
        raise TypeError(f"{name}: label_smoothing must be a number, got {label_smoothing!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1], got {label_smoothing}")
    if weight is not None:
        check_tensor(name, "weight", weight, "K")
        check_shape(name, "weight", weight, (input.shape[1],))
        wide = accumulation_dtype(input.dtype)
        if weight.dtype != wide:
            raise TypeError(
                f"{name}: weight must be {wide} for {input.dtype} logits, got {weight.dtype}"
            )
        if weight.device != input.device:
            raise ValueError(
                f"{name}: weight is on {weight.device} but input is on {input.device}; "
                "move them to one device"
            )
    _check_labels(name, target, input.shape[1], ignore_index)
    return operator(input, target, weight, ignore_index, reduction, label_smoothing, align_corners)


def _check_labels(name: str, target: Tensor, classes: int, ignore_index: int) -> None:
    if not values_are_checked(target):
        return
    values = target.long()
    wrong = values[((values < 0) | (values >= classes)) & (values != ignore_index)]
    if wrong.numel() > 0:
        raise ValueError(
            f"{name}: target must lie in [0, {classes}) or be the ignore_index {ignore_index}, got "
            f"{int(wrong[0])} ({wrong.numel()} such pixels); name the label of pixels that shall "
            "not count as ignore_index"
        )
