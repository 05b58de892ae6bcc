"""depthwise_gelu: the middle of a convolutional feed-forward network in one pass."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels._runtime.checks import check_same_kind, check_shape, check_tensor
from vss_kernels.depthwise_gelu.op import operator

__all__ = ["depthwise_gelu"]

_NAME = "depthwise_gelu"


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves each channel of a map by itself, adds a bias and applies the exact GELU.

    This is what stands between the two linear layers of SegFormer's Mix-FFN (Xie et al., NeurIPS
    2021, section 3.1): a 3x3 depthwise convolution with zero padding, which tells tokens where they
    are, and the activation. Only ``x`` is kept for the backward pass.

    Args:
        x: Map of shape (B, H, W, C), float32, float16, bfloat16 or float64, any strides.
        weight: Kernel of each channel, shape (C, 1, 3, 3) as in ``torch.nn.Conv2d``, same dtype as
            ``x``.
        bias: Shift of each channel, shape (C,), same dtype as ``x``.

    Returns:
        Tensor of shape (B, H, W, C), contiguous, dtype of ``x``. Computed in float32 (float64 for
        float64), with an error of the GELU below 2e-7.

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, ``x`` has no rows, columns or channels, or the devices
            differ.

    Example:
        >>> x, weight = torch.ones(1, 2, 3, 1), torch.ones(1, 1, 3, 3)
        >>> vss_kernels.depthwise_gelu(x, weight, torch.tensor([-4.0])).squeeze()  # of 0, 2 and 0
        tensor([[0.0000, 1.9545, 0.0000],
                [0.0000, 1.9545, 0.0000]])
    """
    check_tensor(_NAME, "x", x, "B,H,W,C")
    check_tensor(_NAME, "weight", weight, "C,1,3,3")
    check_tensor(_NAME, "bias", bias, "C")
    x, weight, bias = cast_inputs(x, weight, bias)
    check_same_kind(_NAME, x=x, weight=weight, bias=bias)
    if 0 in x.shape[1:]:
        raise ValueError(
            f"{_NAME}: x must have at least one row, column and channel, got {tuple(x.shape)}"
        )
    channels = x.shape[3]
    check_shape(_NAME, "weight", weight, (channels, 1, 3, 3))
    check_shape(_NAME, "bias", bias, (channels,))
    return operator(x, weight, bias)
