"""SegFormer's fusion of feature levels at half the sides of the largest, for heads at 1/8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vss_kernels._runtime import cpu_inference, native
from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels.nn.dense import fuse_projected, project
from vss_kernels.nn.resizing import resize

__all__ = ["fuse_halved", "fuse_halved_natively", "halves_natively"]

_MOST_LEVELS = 8
"""As ``kMaxOthers`` and the first in ``csrc/halved_pyramid/kernel.h``."""


def fuse_halved(levels: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Projects feature levels, adds them at the size of the first, cuts off, and halves the sides.

    This is ``resize(relu(fuse_projected(levels, weights, bias)))`` to half the sides, odd ones
    rounded down: what heads that decode at 1/8 take of SegFormer's fusion (Xie et al., NeurIPS
    2021, section 3.2). Where :func:`halves_natively` says so, neither the projection of the first
    level nor the sum exists in memory.

    Args:
        levels: Feature levels (N, C_i, h_i, w_i), the largest first, of a floating-point dtype.
        weights: For each level its matrix (E, C_i).
        bias: Added once to the sum, (E,).

    Returns:
        Map of shape (N, E, h_1 // 2, w_1 // 2), any strides.

    Example:
        >>> levels = [torch.randn(1, 32, 8, 8), torch.randn(1, 64, 4, 4)]
        >>> weights = [torch.randn(16, 32), torch.randn(16, 64)]
        >>> vss_kernels.nn.fuse_halved(levels, weights, torch.zeros(16)).shape
        torch.Size([1, 16, 4, 4])
    """
    halved = fuse_halved_natively(levels, weights, bias)
    if halved is not None:
        return halved
    fused = F.relu(fuse_projected(levels, weights, bias))
    height, width = fused.shape[-2:]
    return resize(fused, (height // 2, width // 2))


def fuse_halved_natively(
    levels: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor
) -> Tensor | None:
    """:func:`fuse_halved` by its native kernel alone.

    Args:
        levels: As there.
        weights: As there.
        bias: As there.

    Returns:
        Its result, or None where :func:`halves_natively` says that the kernel is not run.
    """
    if not halves_natively(levels, weights, bias):
        return None
    first, weight, bias = cast_inputs(levels[0], weights[0], bias)
    others = [
        project(level, matrix, None).permute(0, 2, 3, 1)
        for level, matrix in zip(levels[1:], weights[1:], strict=True)
    ]
    halved = torch.ops.vss_kernels.halved_pyramid_cpu(
        first.permute(0, 2, 3, 1), weight, bias, others
    )
    return halved.permute(0, 3, 1, 2)


def halves_natively(levels: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> bool:
    """Returns whether :func:`fuse_halved` runs its native kernel for these tensors.

    It does so in inference on a CPU, in float32 and narrower dtypes, for a first level with even
    numbers of rows and columns; compilers and exported files see PyTorch's own operators.
    """
    tensors = (*levels, *weights, bias)
    if native.problem() is not None or not cpu_inference.is_cpu_inference(*tensors):
        return False
    first, *others = levels
    height, width = first.shape[-2:]
    if first.numel() == 0 or height % 2 or width % 2 or len(levels) > _MOST_LEVELS:
        return False
    if any(level.numel() == 0 or len(level) != len(first) for level in others):
        return False
    dtypes = {tensor.dtype for tensor in cast_inputs(*tensors)}
    return len(dtypes) == 1 and native.refuses(first) is None


def _fake(first: Tensor, weight: Tensor, bias: Tensor, others: Sequence[Tensor]) -> Tensor:
    batch, height, width, _ = first.shape
    return first.new_empty(batch, height // 2, width // 2, weight.shape[0])


if native.problem() is None:
    torch.library.register_fake("vss_kernels::halved_pyramid_cpu", _fake)
