"""upsample_argmax: a bilinear resize and the choice of a class after it, in one.

The logits at the size of the image, the largest tensor of a segmentation model, need not exist.
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from vss_kernels._runtime.checks import check_flag, check_logits, check_size
from vss_kernels.upsample_argmax.op import operator

__all__ = ["upsample_argmax"]


@overload
def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    through: tuple[int, int] | None = None,
    confidence: Literal[False] = False,
    *,
    align_corners: bool = False,
) -> Tensor: ...


@overload
def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    through: tuple[int, int] | None = None,
    *,
    confidence: Literal[True],
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]: ...


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    through: tuple[int, int] | None = None,
    confidence: bool = False,
    *,
    align_corners: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The most likely class of every pixel after a bilinear resize of the logits.

    With ``through`` there are two resizes, the first to that size: the published evaluation goes
    through the network's input size to the image's, and gives other classes at some borders than
    one resize would. Nothing is rounded between the two.

    Args:
        logits: Class scores of shape (N, K, h, w), float32, float16, bfloat16 or float64, any
            strides.
        size: Height and width of the result.
        through: Height and width to resize to first.
        confidence: Whether to return also the probability of the winning class.
        align_corners: Whether the centres of the corner pixels, not their corners, coincide in
            every resize, as in ``torch.nn.functional.interpolate``.

    Returns:
        Classes of shape (N, H, W), contiguous, uint8 for at most 256 classes, else int64; with
        ``confidence`` also their softmax probabilities (N, H, W) in float32. Neither has a
        gradient. Of equal scores the lower class wins.

    Raises:
        TypeError: ``logits`` are no tensor or have an unsupported dtype.
        ValueError: ``logits`` are not (N, K, h, w) with at least one class, row and column, or a
            size is not positive.

    Example:
        >>> logits = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two classes, one row
        >>> vss_kernels.upsample_argmax(logits, (1, 4))
        tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
        >>> classes, probability = vss_kernels.upsample_argmax(logits, (1, 4), confidence=True)
        >>> probability
        tensor([[[0.7311, 0.6225, 0.6225, 0.7311]]])
    """
    name = "upsample_argmax"
    check_logits(name, logits)
    check_size(name, "size", size)
    check_flag(name, "confidence", confidence)
    check_flag(name, "align_corners", align_corners)
    if through is not None:
        check_size(name, "through", through)
        through = (through[0], through[1])
    return operator(logits, (size[0], size[1]), through, confidence, align_corners)
