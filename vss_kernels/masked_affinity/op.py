"""masked_affinity as a registered operator: fakes, autograd and backends.

One operator serves the fused backends: Triton's kernels, and on the CPU the extension's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native, triton_support
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels._runtime.registration import python_operator
from vss_kernels._runtime.token_rows import place_rows, split_positions
from vss_kernels._runtime.triton_support import cdiv, device_of, dot_precision
from vss_kernels.masked_affinity import eager


@python_operator("masked_affinity")
def masked_affinity(target: Tensor, reference: Tensor, index: Tensor, use_triton: bool) -> Tensor:
    """Gathers and multiplies in one launch."""
    if not use_triton:
        return torch.ops.vss_kernels.masked_affinity_cpu(target, reference, index)
    from vss_kernels.masked_affinity import triton_kernels as kernels

    target, reference, index = target.contiguous(), reference.contiguous(), index.contiguous()
    (_, positions, channels), (batch, frames, tokens, _) = target.shape, reference.shape
    selected = index.shape[2]
    out = target.new_empty(batch, frames, selected, positions)
    tiles_s, tiles_q = cdiv(selected, 64), cdiv(positions, 64)
    if out.numel() > 0:
        with device_of(target):
            kernels.affinity_kernel[(batch * frames * tiles_s * tiles_q,)](
                target, reference, index, out, positions, channels, selected, tokens, frames,
                tiles_s, tiles_q, BLOCK_S=64, BLOCK_Q=64, BLOCK_C=32, PRECISION=dot_precision(),
            )  # fmt: skip
    return out


@python_operator("masked_affinity_backward")
def masked_affinity_backward(
    grad: Tensor,
    target: Tensor,
    reference: Tensor,
    index: Tensor,
    needs: list[bool],
    use_triton: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of target and reference; an empty tensor for one that is not needed."""
    if not use_triton:
        return torch.ops.vss_kernels.masked_affinity_cpu_backward(
            grad, target, reference, index, needs
        )
    from vss_kernels.masked_affinity import triton_kernels as kernels

    grad, index = grad.contiguous(), index.contiguous()
    target, reference = target.contiguous(), reference.contiguous()
    (batch, positions, channels), (_, frames, tokens, _) = target.shape, reference.shape
    selected = index.shape[2]
    grad_target = target.new_empty(target.shape if needs[0] else (0,))
    grad_reference = reference.new_empty(reference.shape if needs[1] else (0,))
    tiles_q, tiles_c = cdiv(positions, 64), cdiv(channels, 64)
    with device_of(target):
        if grad_target.numel() > 0:
            kernels.target_gradient_kernel[(batch * tiles_q * tiles_c,)](
                grad, reference, index, grad_target, positions, channels, selected, tokens,
                frames, tiles_q, tiles_c, BLOCK_S=32, BLOCK_Q=64, BLOCK_C=64,
                PRECISION=dot_precision(),
            )  # fmt: skip
        if grad_reference.numel() > 0:
            tiles_s = cdiv(selected, 64)
            parts, length = split_positions(positions, batch * frames * tiles_s * tiles_c)
            rows = grad.new_empty(parts, batch, frames, selected, channels, dtype=torch.float32)
            if rows.numel() > 0:
                kernels.row_gradient_kernel[(parts * batch * frames * tiles_s * tiles_c,)](
                    grad, target, rows, positions, channels, selected, frames, length,
                    batch * frames, tiles_s, tiles_c, BLOCK_S=64, BLOCK_Q=32, BLOCK_C=64,
                    PRECISION=dot_precision(),
                )  # fmt: skip
            place_rows(rows, index, grad_reference)
    return grad_target, grad_reference


@masked_affinity.register_fake
def _(target: Tensor, reference: Tensor, index: Tensor, use_triton: bool) -> Tensor:
    return target.new_empty(*index.shape, target.shape[1])


@masked_affinity_backward.register_fake
def _(
    grad: Tensor,
    target: Tensor,
    reference: Tensor,
    index: Tensor,
    needs: list[bool],
    use_triton: bool,
) -> tuple[Tensor, Tensor]:
    return (
        target.new_empty(target.shape if needs[0] else (0,)),
        reference.new_empty(reference.shape if needs[1] else (0,)),
    )


masked_affinity.differentiate_by(masked_affinity_backward)


def _triton_can_run(target: Tensor, *_: Any) -> str | None:
    return triton_support.refuses_tokens(target)


def _native_can_run(target: Tensor, *_: Any) -> str | None:
    return native.refuses_cpu(target)


def _run_triton(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    return torch.ops.vss_kernels.masked_affinity(target, reference, index, True)


def _run_native(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    return torch.ops.vss_kernels.masked_affinity(target, reference, index, False)


operator = Operator(
    "masked_affinity",
    [
        Implementation("triton", _run_triton, _triton_can_run, triton_support.problem),
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.masked_affinity), always, always),
    ],
)
