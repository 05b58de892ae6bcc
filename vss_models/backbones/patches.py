"""Convolutions whose patches do not overlap, as one matrix product on channels-last maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vss_kernels.nn import token_linear
from vss_models.narrowing import narrowed


def reduce_patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a convolution whose kernel is its stride to (N, H, W, C); returns (N, h, w, C').

    Training keeps the map, which others keep as well, and not the copy of it in patches.
    """
    side = conv.kernel_size[0]
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        bias = None if conv.bias is None else narrowed(conv.bias)
        return _PatchLinear.apply(narrowed(x), narrowed(weight), bias, side)  # type: ignore[no-untyped-call,no-any-return]
    return token_linear(_to_patches(x, side), weight, conv.bias)


class _PatchLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, side: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.side = side
        return F.linear(_to_patches(x, side), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_x = grad_weight = grad_bias = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                patches = (rows @ weight).view(*grad.shape[:-1], -1)
                grad_x = _from_patches(patches, ctx.side, x.shape)
            if ctx.needs_input_grad[1]:
                grad_weight = rows.mT @ _to_patches(x, ctx.side).flatten(0, -2)
            if ctx.needs_input_grad[2]:
                grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias, None


def _to_patches(x: Tensor, side: int) -> Tensor:
    """Copies (N, H, W, C) into patches (N, h, w, side * side * C); what fills none is left out."""
    n, height, width, dim = x.shape
    h, w = height // side, width // side
    patches = x[:, : h * side, : w * side].reshape(n, h, side, w, side, dim)
    return patches.transpose(2, 3).reshape(n, h, w, side * side * dim)


def _from_patches(patches: Tensor, side: int, shape: torch.Size) -> Tensor:
    """Copies patches to where :func:`_to_patches` took them from; zeros where it took none."""
    n, height, width, dim = shape
    h, w = patches.shape[1:3]
    x = patches.view(n, h, w, side, side, dim).transpose(2, 3).reshape(n, h * side, w * side, dim)
    if (h * side, w * side) == (height, width):
        return x
    return F.pad(x, (0, 0, 0, width - w * side, 0, height - h * side))


__all__ = ["reduce_patches"]
