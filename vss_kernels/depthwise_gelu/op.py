"""depthwise_gelu as a registered operator: fakes and the backends' conditions.

The schemas stand in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels and the
gradient (``csrc/depthwise_gelu/autograd.cpp``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.depthwise_gelu import eager


def _native_can_run(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    return native.refuses(x)


def _run_native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.vss_kernels.depthwise_gelu(x, weight, bias)


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The fake must have the strides of the kernel's result: contiguous, whatever x has.
    grad_x, grad_weight, grad_bias, result = (
        tensor.new_empty(tensor.shape if needed else (0,))
        for tensor, needed in zip((x, weight, bias, x), needs, strict=True)
    )
    return grad_x, grad_weight, grad_bias, result


if native.problem() is None:
    torch.library.register_fake("vss_kernels::depthwise_gelu", _fake)
    torch.library.register_fake("vss_kernels::depthwise_gelu_backward", _fake_backward)

operator = Operator(
    "depthwise_gelu",
    [
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.depthwise_gelu), always, always),
    ],
)
