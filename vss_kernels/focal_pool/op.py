"""focal_pool as a registered operator: fakes and the backends' conditions.

The schemas stand in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels and the
gradient (``csrc/focal_pool/autograd.cpp``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.focal_pool import eager


def _native_can_run(x: Tensor, weight: Tensor, bias: Tensor, cells: tuple[int, int]) -> str | None:
    return native.refuses(x)


def _run_native(x: Tensor, weight: Tensor, bias: Tensor, cells: tuple[int, int]) -> Tensor:
    return torch.ops.vss_kernels.focal_pool(x, weight, bias, cells)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, cells: tuple[int, int]) -> Tensor:
    return x.new_empty(x.shape[0], cells[0], cells[1], x.shape[3])


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    # The fake must have the strides of the kernel's result: contiguous, whatever x has.
    grad_x = x.new_empty(x.shape if needs[0] else (0,))
    return grad_x, weight.new_empty(weight.shape), weight.new_empty(())


if native.problem() is None:
    torch.library.register_fake("vss_kernels::focal_pool", _fake)
    torch.library.register_fake("vss_kernels::focal_pool_backward", _fake_backward)

operator = Operator(
    "focal_pool",
    [
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.focal_pool), always, always),
    ],
)
