"""The second half of SegFormer's feed-forward network, of which training keeps one map, not two."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels.depthwise_gelu import depthwise_gelu
from vss_kernels.depthwise_gelu.op import operator
from vss_kernels.nn.linear import token_linear

__all__ = ["depthwise_gelu_linear"]


class _DepthwiseGeluLinear(torch.autograd.Function):
    """Keeps what goes in: the kernel of the gradient gives the linear layer its input again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, kernel, shift, weight)
        return F.linear(depthwise_gelu(x, kernel, shift), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, kernel, shift, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        with torch.autocast(grad.device.type, enabled=False):
            *gradients, hidden = torch.ops.vss_kernels.depthwise_gelu_backward(
                (rows @ weight).view(x.shape), x, kernel, shift, list(needs[:4])
            )
            wanted = [
                gradient if needed else None
                for gradient, needed in zip(gradients, needs, strict=False)
            ]
            grad_weight = rows.mT @ hidden.flatten(0, -2) if needs[3] else None
            grad_bias = rows.sum(0) if needs[4] else None
        return (*wanted, grad_weight, grad_bias)


def depthwise_gelu_linear(
    x: Tensor, kernel: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """A linear layer of :func:`vss_kernels.depthwise_gelu`: the end of SegFormer's Mix-FFN.

    Where the native kernels run, only ``x`` is kept for the backward pass, which computes the
    linear layer's input again beside the gradient of the convolution (Xie et al., NeurIPS 2021,
    section 3.1). In inference on a CPU the layer runs as :class:`vss_kernels.nn.TokenLinear`.

    Args:
        x: Map (B, H, W, C).
        kernel: Kernel of each channel, (C, 1, 3, 3).
        shift: Shift of each channel, (C,).
        weight: Matrix (C', C) of the linear layer.
        bias: Its bias (C',), or None.

    Returns:
        Tensor of shape (B, H, W, C').

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit.

    Example:
        >>> x, kernel, shift = torch.randn(1, 6, 5, 8), torch.randn(8, 1, 3, 3), torch.zeros(8)
        >>> vss_kernels.nn.depthwise_gelu_linear(x, kernel, shift, torch.randn(4, 8)).shape
        torch.Size([1, 6, 5, 4])
    """
    tensors = (x, kernel, shift, weight) if bias is None else (x, kernel, shift, weight, bias)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return token_linear(depthwise_gelu(x, kernel, shift), weight, bias)
    narrow = cast_inputs(*tensors)
    if operator.choose(*narrow[:3]).backend != "native":
        return F.linear(depthwise_gelu(x, kernel, shift), weight, bias)
    return _DepthwiseGeluLinear.apply(*narrow[:4], None if bias is None else narrow[4])  # type: ignore[no-untyped-call,no-any-return]
