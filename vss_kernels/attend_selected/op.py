"""attend_selected as a registered operator: fake, autograd and backends.

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
from vss_kernels.attend_selected import eager


@python_operator("attend_selected")
def attend_selected(
    affinity: Tensor, value: Tensor, index: Tensor, use_triton: bool
) -> tuple[Tensor, Tensor]:
    """Softmax, gather and product in one launch; also the softmax's statistics (B,R,2,Q)."""
    if not use_triton:
        return torch.ops.vss_kernels.attend_selected_cpu(affinity, value, index)
    from vss_kernels.attend_selected import triton_kernels as kernels

    affinity, value, index = affinity.contiguous(), value.contiguous(), index.contiguous()
    batch, frames, selected, positions = affinity.shape
    tokens, channels = value.shape[2:]
    out = value.new_empty(batch, frames, positions, channels)
    statistics = value.new_empty(batch, frames, 2, positions, dtype=torch.float32)
    if selected == 0 or out.numel() == 0:
        return out.zero_(), statistics.zero_()
    tiles_q, tiles_e = cdiv(positions, 64), cdiv(channels, 64)
    with device_of(affinity):
        kernels.attend_kernel[(batch * frames * tiles_q * tiles_e,)](
            affinity, value, index, out, statistics, positions, channels, selected, tokens,
            tiles_q, tiles_e, BLOCK_S=16 if _is_wide(affinity) else 32, BLOCK_Q=64, BLOCK_E=64,
            PRECISION=dot_precision(), num_warps=_warps(affinity),
        )  # fmt: skip
    return out, statistics


@python_operator("attend_selected_backward")
def attend_selected_backward(
    grad: Tensor,
    affinity: Tensor,
    statistics: Tensor,
    value: Tensor,
    index: Tensor,
    needs: list[bool],
    use_triton: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of affinity and value; an empty tensor for one that is not needed."""
    if not use_triton:
        return torch.ops.vss_kernels.attend_selected_cpu_backward(
            grad, affinity, statistics, value, index, needs
        )
    from vss_kernels.attend_selected import triton_kernels as kernels

    grad, affinity = grad.contiguous(), affinity.contiguous()
    value, index = value.contiguous(), index.contiguous()
    batch, frames, selected, positions = affinity.shape
    tokens, channels = value.shape[2:]
    grad_affinity = affinity.new_empty(affinity.shape if needs[0] else (0,))
    grad_value = value.new_empty(value.shape if needs[1] else (0,))
    tiles_q = cdiv(positions, 64)
    with device_of(affinity):
        if grad_affinity.numel() > 0:
            kernels.affinity_gradient_kernel[(batch * frames * tiles_q,)](
                grad, affinity, statistics, value, index, grad_affinity, positions, channels,
                selected, tokens, tiles_q, BLOCK_S=64, BLOCK_Q=64, BLOCK_E=32,
                PRECISION=dot_precision(), num_warps=_warps(affinity),
            )  # fmt: skip
        if grad_value.numel() > 0:
            tiles_s, tiles_e = cdiv(selected, 64), cdiv(channels, 64)
            parts, length = split_positions(positions, batch * frames * tiles_s * tiles_e)
            rows = grad.new_empty(parts, batch, frames, selected, channels, dtype=torch.float32)
            if rows.numel() > 0:
                kernels.value_row_gradient_kernel[(parts * batch * frames * tiles_s * tiles_e,)](
                    grad, affinity, statistics, rows, positions, channels, selected, length,
                    batch * frames, tiles_s, tiles_e, BLOCK_S=64, BLOCK_Q=32, BLOCK_E=64,
                    PRECISION=dot_precision(),
                )  # fmt: skip
            place_rows(rows, index, grad_value)
    return grad_affinity, grad_value


def _is_wide(tensor: Tensor) -> bool:
    # Exact float32 products hold more in registers: smaller tiles over more threads, or they spill.
    return tensor.dtype == torch.float32


def _warps(tensor: Tensor) -> int:
    return 8 if _is_wide(tensor) else 4


@attend_selected.register_fake
def _(affinity: Tensor, value: Tensor, index: Tensor, use_triton: bool) -> tuple[Tensor, Tensor]:
    batch, frames, _, positions = affinity.shape
    return (
        value.new_empty(batch, frames, positions, value.shape[3]),
        value.new_empty(batch, frames, 2, positions, dtype=torch.float32),
    )


@attend_selected_backward.register_fake
def _(
    grad: Tensor,
    affinity: Tensor,
    statistics: Tensor,
    value: Tensor,
    index: Tensor,
    needs: list[bool],
    use_triton: bool,
) -> tuple[Tensor, Tensor]:
    return (
        affinity.new_empty(affinity.shape if needs[0] else (0,)),
        value.new_empty(value.shape if needs[1] else (0,)),
    )


attend_selected.differentiate_by(attend_selected_backward, results=("out", "statistics"))


def _triton_can_run(affinity: Tensor, *_: Any) -> str | None:
    return triton_support.refuses(affinity)


def _native_can_run(affinity: Tensor, *_: Any) -> str | None:
    return native.refuses_cpu(affinity)


def _run_triton(affinity: Tensor, value: Tensor, index: Tensor) -> Tensor:
    return torch.ops.vss_kernels.attend_selected(affinity, value, index, True)[0]


def _run_native(affinity: Tensor, value: Tensor, index: Tensor) -> Tensor:
    return torch.ops.vss_kernels.attend_selected(affinity, value, index, False)[0]


operator = Operator(
    "attend_selected",
    [
        Implementation("triton", _run_triton, _triton_can_run, triton_support.problem),
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.attend_selected), always, always),
    ],
)
