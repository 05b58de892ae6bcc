"""Logits of pixels as a linear layer leaves them, turned into resized maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vss_kernels._runtime import cpu_inference, native
from vss_kernels.nn.resizing import resize

__all__ = ["resize_pixel_logits"]


def resize_pixel_logits(rows: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes logits bilinearly whose classes lie side by side (``align_corners=False``).

    In inference on a CPU one native kernel resizes and turns them; its result lies row by row,
    each with all its classes, which :func:`vss_kernels.upsample_argmax` reads fastest.

    Args:
        rows: (N, h, w, K) of a floating-point dtype, any strides.
        size: Height and width (H, W) of the result.

    Returns:
        (N, K, H, W), any strides.

    Example:
        >>> rows = torch.tensor([[[[0.0], [4.0]]]])
        >>> vss_kernels.nn.resize_pixel_logits(rows, (1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    height, width = size
    if not _is_native(rows):
        return resize(rows.permute(0, 3, 1, 2).contiguous(), (height, width))
    resized = torch.ops.vss_kernels.resized_rows_cpu(rows, height, width)
    return resized.transpose(1, 2)


def _is_native(rows: Tensor) -> bool:
    return (
        native.problem() is None
        and cpu_inference.is_cpu_inference(rows)
        and native.refuses(rows) is None
        and rows.numel() > 0
    )


def _fake(rows: Tensor, height: int, width: int) -> Tensor:
    return rows.new_empty(rows.shape[0], height, rows.shape[3], width)


if native.problem() is None:
    torch.library.register_fake("vss_kernels::resized_rows_cpu", _fake)
