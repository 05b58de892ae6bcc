"""add_layer_norm as a registered operator: fakes, autograd and backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import triton_support
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels._runtime.registration import python_operator
from vss_kernels._runtime.triton_support import cdiv, device_of
from vss_kernels.add_layer_norm import eager

MOST_CHANNELS = 1024
"""Channels of a row that a program keeps in registers."""

_MOST_PROGRAMS = 256
_TILE = 2048


def _tile(channels: int) -> tuple[int, int]:
    """Rows and channels of a tile."""
    width = max(16, 1 << (channels - 1).bit_length())
    return max(1, _TILE // width), width


@python_operator("add_layer_norm")
def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the sum (empty without a branch), its normalisation and statistics (rows,2)."""
    from vss_kernels.add_layer_norm import triton_kernels as kernels

    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    branch = None if branch is None else branch.contiguous()
    factor = None if factor is None else factor.contiguous()
    channels = x.shape[-1]
    rows = x.numel() // max(1, channels)
    total = x.new_empty(x.shape if branch is not None else (0,))
    out = x.new_empty(x.shape, dtype=dtype)
    statistics = x.new_empty(rows, 2, dtype=torch.float32)
    if rows > 0:
        block_r, block_c = _tile(channels)
        with device_of(x):
            # Any pointer stands for a tensor that is not there; the kernel does not read it.
            kernels.add_layer_norm_kernel[(cdiv(rows, block_r),)](
                x, x if branch is None else branch, x if factor is None else factor, weight, bias,
                total, out, statistics, rows, channels, rows // x.shape[0], eps,
                HAS_BRANCH=branch is not None, HAS_FACTOR=factor is not None, BLOCK_R=block_r,
                BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
    return total, out, statistics


@python_operator("add_layer_norm_backward")
def add_layer_norm_backward(
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    statistics: Tensor,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, branch (empty without one), and weight and bias together (2,C)."""
    from vss_kernels.add_layer_norm import triton_kernels as kernels

    total, grad_out, weight = total.contiguous(), grad_out.contiguous(), weight.contiguous()
    factor = None if factor is None else factor.contiguous()
    grad_total = None if grad_total is None else grad_total.contiguous()
    channels = total.shape[-1]
    rows = total.numel() // max(1, channels)
    grad_x = total.new_empty(total.shape)
    has_branch = branch_dtype is not None
    grad_branch = total.new_empty(total.shape if has_branch else (0,), dtype=branch_dtype)
    if rows == 0:
        return grad_x, grad_branch, weight.new_zeros(2, channels)
    block_r, block_c = _tile(channels)
    programs = min(_MOST_PROGRAMS, cdiv(rows, block_r))
    parts = statistics.new_empty(programs, 2, channels)
    with device_of(total):
        kernels.add_layer_norm_gradient_kernel[(programs,)](
            grad_out if grad_total is None else grad_total, grad_out, total,
            total if factor is None else factor, weight, statistics, grad_x, grad_branch, parts,
            rows, channels, rows // total.shape[0], programs, HAS_GRAD_SUM=grad_total is not None,
            HAS_BRANCH=has_branch, HAS_FACTOR=factor is not None, BLOCK_R=block_r,
            BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return grad_x, grad_branch, parts.sum(0).to(weight.dtype)


@add_layer_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(x.shape if branch is not None else (0,))
    rows = x.numel() // x.shape[-1]
    statistics = x.new_empty(rows, 2, dtype=torch.float32)
    return total, x.new_empty(x.shape, dtype=dtype), statistics


@add_layer_norm_backward.register_fake
def _(
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    statistics: Tensor,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = total.shape if branch_dtype is not None else (0,)
    return (
        total.new_empty(total.shape),
        total.new_empty(shape, dtype=branch_dtype),
        weight.new_empty(2, weight.shape[0]),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, branch, factor, _, _ = inputs
    total, _, statistics = output
    ctx.branch_dtype = None if branch is None else branch.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(x if branch is None else total, weight, factor, statistics)


def _backward(
    ctx: Any, grad_total: Tensor | None, grad_out: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    total, weight, factor, statistics = ctx.saved_tensors
    if grad_total is not None and ctx.branch_dtype is None:
        grad_total = None  # of the empty sum
    if grad_out is None:
        if grad_total is None:
            return (None,) * 7
        grad_out = torch.zeros_like(total)
    grad_x, grad_branch, grad_vectors = torch.ops.vss_kernels.add_layer_norm_backward(
        grad_total, grad_out, total, weight, factor, statistics, ctx.branch_dtype
    )
    grad_weight, grad_bias = grad_vectors.unbind(0)
    grads = (grad_x, grad_weight, grad_bias, grad_branch if ctx.branch_dtype is not None else None)
    needed = zip(grads, ctx.needs_input_grad[:4], strict=True)
    return (*(grad if need else None for grad, need in needed), None, None, None)


add_layer_norm.register_autograd(_backward, setup_context=_setup_context)
add_layer_norm_backward.forbid_derivative("add_layer_norm")


def _run_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if factor is not None:
        factor = factor.detach()
    total, out, _ = torch.ops.vss_kernels.add_layer_norm(
        x, weight, bias, branch, factor, eps, dtype
    )
    return (x if branch is None else total), out


def _can_run(x: Tensor, weight: Tensor, bias: Tensor, branch: Tensor | None, *_: Any) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler fuses the definition itself, with what stands around it"
    if not 1 <= x.shape[-1] <= MOST_CHANNELS:
        return f"it takes 1 to {MOST_CHANNELS} channels, not {x.shape[-1]}"
    reason = triton_support.refuses(x) or triton_support.refuses(weight)
    return reason if reason is not None or branch is None else triton_support.refuses(branch)


operator = Operator(
    "add_layer_norm",
    [
        Implementation("triton", _run_triton, _can_run, triton_support.problem),
        Implementation("eager", without_autocast(eager.add_layer_norm), always, always),
    ],
)
