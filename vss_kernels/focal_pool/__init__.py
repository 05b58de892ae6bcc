"""focal_pool: bilinear resize and learned window pooling in one read of the map."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels._runtime.checks import check_same_kind, check_size, check_tensor
from vss_kernels.focal_pool.eager import window_side
from vss_kernels.focal_pool.op import operator

__all__ = ["focal_pool"]


def focal_pool(x: Tensor, weight: Tensor, bias: Tensor, cells: tuple[int, int]) -> Tensor:
    """Pools a map to a grid of cells with one learned weight per position of a sub-window.

    The map is resized (bilinear, ``align_corners=False``) to ``cells * g`` if it has another
    size; each cell is then the weighted sum of its ``g x g`` sub-window plus the bias, the same
    for every channel. This is how CFFM summarises a frame at a coarser granularity
    (Sun et al., CVPR 2022, section 3.2, focal pooling).

    Args:
        x: Map of shape (B, H, W, C), float32, float16, bfloat16 or float64, any strides.
        weight: Pooling weights of shape (g * g,), row-major, same dtype as ``x``.
        bias: Scalar tensor of shape (), same dtype as ``x``.
        cells: Rows and columns of the result.

    Returns:
        Tensor of shape (B, rows, columns, C), contiguous, dtype of ``x``. Sums are accumulated
        in float32 (float64 for float64).

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, ``g * g`` is no square, ``cells`` are not positive, or
            the devices differ.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 4, 4, 1)
        >>> mean = torch.full((4,), 0.25)  # of a sub-window of 2 x 2
        >>> vss_kernels.focal_pool(x, mean, torch.tensor(0.0), (2, 2)).squeeze()
        tensor([[ 2.5000,  4.5000],
                [10.5000, 12.5000]])
    """
    check_tensor("focal_pool", "x", x, "B,H,W,C")
    check_tensor("focal_pool", "weight", weight, "g*g")
    check_tensor("focal_pool", "bias", bias, "")
    x, weight, bias = cast_inputs(x, weight, bias)
    check_same_kind("focal_pool", x=x, weight=weight, bias=bias)
    side = window_side(weight.shape[0])
    if side == 0 or side * side != weight.shape[0]:
        raise ValueError(
            f"focal_pool: weight must hold g*g values for a sub-window of side g >= 1, "
            f"got {weight.shape[0]}"
        )
    check_size("focal_pool", "cells (rows, columns)", cells)
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(
            f"focal_pool: x must have at least one row and one column, got {tuple(x.shape)}"
        )
    return operator(x, weight, bias, (cells[0], cells[1]))
