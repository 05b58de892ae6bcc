"""A bilinear resize whose gradient is gathered and not scattered.

On a GPU PyTorch scatters this gradient with atomic additions of floating-point numbers, whose order
differs from run to run. Here whoever owns a source position adds up what has read it, in a fixed
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vss_kernels._runtime import resize as eager
from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels.fuse_pyramid.op import operator


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, rows: int, columns: int) -> Tensor:
        ctx.source = (maps.shape[-2], maps.shape[-1])
        return eager.resize(maps, (rows, columns))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return resize_adjoint(grad, ctx.source), None, None


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps bilinearly, pixel centres aligned (``align_corners=False``).

    Args:
        maps: (N, K, h, w) of a floating-point dtype.
        size: Height and width (H, W) of the result.

    Returns:
        Maps (N, K, H, W), those of ``torch.nn.functional.interpolate``. Their gradient is the same
        from run to run on every device.

    Example:
        >>> from vss_kernels.nn.resizing import resize
        >>> resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    rows, columns = size
    if torch.is_grad_enabled() and maps.requires_grad:
        return _Resize.apply(maps, rows, columns)  # type: ignore[no-untyped-call,no-any-return]
    return eager.resize(maps, (rows, columns))


def resize_adjoint(grad: Tensor, source: tuple[int, int]) -> Tensor:
    """Computes the gradient of the input of :func:`resize`.

    Args:
        grad: Gradient of the result, (N, K, H, W).
        source: Height and width (h, w) of the input.

    Returns:
        (N, K, h, w), dtype of ``grad``; sums are accumulated in float32 (float64 for float64).
    """
    (rows, columns), (height, width) = source, grad.shape[-2:]
    if (rows, columns) == (2 * height, 2 * width):
        # Each result is the mean of a square of four, which nothing else reads.
        quarters = (grad * 0.25)[..., :, None, :, None]
        return quarters.expand(*grad.shape[:-1], 2, width, 2).reshape(*grad.shape[:-2], *source)
    is_enlarged = rows <= height and columns <= width
    if is_enlarged and operator.choose(grad, (grad,), False).backend == "native":
        (gathered,) = torch.ops.vss_kernels.fuse_pyramid_backward(grad, [rows, columns], False)
        return gathered  # type: ignore[no-any-return]
    wide = grad.to(accumulation_dtype(grad.dtype))
    with torch.autocast(grad.device.type, enabled=False):
        gathered = _matrix(rows, height, wide).mT @ wide @ _matrix(columns, width, wide)
    return gathered.to(grad.dtype)


def _matrix(size: int, resized: int, like: Tensor) -> Tensor:
    """The matrix (resized, size) of a linear resize along one axis."""
    identity = torch.eye(size, device=like.device, dtype=like.dtype)
    return F.interpolate(identity[None], size=resized, mode="linear")[0].mT


__all__ = ["resize", "resize_adjoint"]
