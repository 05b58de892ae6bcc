"""select_tokens and masked_affinity as registered operators: fakes, autograd and backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vss_kernels import triton_support
from vss_kernels.affinity import eager
from vss_kernels.autocast import without_autocast
from vss_kernels.autograd import forbid_second_derivative
from vss_kernels.backends import Implementation, Operator, always
from vss_kernels.triton_support import device_of, dot_precision, tiles

CHANNEL_MULTIPLE = 8
LARGEST_TOP = 128


@torch.library.custom_op("vss_kernels::select_tokens", mutates_args=())
def select_tokens(target: Tensor, reference: Tensor, num_selected: int, top: int) -> Tensor:
    """Chooses tokens in three launches: scores of all frames' tokens in two, then the choice."""
    from vss_kernels.affinity import select_kernels as kernels

    target, reference = target.contiguous(), reference.contiguous()
    (_, positions, channels), (batch, frames, tokens, _) = target.shape, reference.shape
    scores = target.new_empty(batch, frames, tokens, dtype=torch.float32)
    index = target.new_empty(batch, frames, num_selected, dtype=torch.int64)
    if index.numel() == 0:
        return index
    top_kept = max(2, 1 << (top - 1).bit_length())
    matrices, tiles_n = batch * frames, tiles(tokens, 16)
    parts, length = split_positions(positions, matrices * tiles_n, max(64, 4 * top_kept))
    best = scores.new_empty(parts, matrices, tokens, top_kept)
    with device_of(target):
        kernels.part_score_kernel[(parts * matrices * tiles_n,)](
            target, reference, best, positions, channels, tokens, frames, top, length, matrices,
            tiles_n, BLOCK_N=16, BLOCK_Q=64, BLOCK_C=32, TOP=top_kept,
        )  # fmt: skip
        kernels.score_kernel[(matrices * tiles_n,)](
            best, scores, tokens, top, parts, matrices, tiles_n, BLOCK_N=16, TOP=top_kept
        )
        kernels.choose_kernel[(batch * frames,)](scores, index, tokens, num_selected, BLOCK_N=512)
    return index


@torch.library.custom_op("vss_kernels::masked_affinity", mutates_args=())
def masked_affinity(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    """Gathers and multiplies in one launch."""
    from vss_kernels.affinity import triton_kernels as kernels

    target, reference, index = target.contiguous(), reference.contiguous(), index.contiguous()
    (_, positions, channels), (batch, frames, tokens, _) = target.shape, reference.shape
    selected = index.shape[2]
    out = target.new_empty(batch, frames, selected, positions)
    tiles_s, tiles_q = tiles(selected, 64), tiles(positions, 64)
    if out.numel() > 0:
        with device_of(target):
            kernels.affinity_kernel[(batch * frames * tiles_s * tiles_q,)](
                target, reference, index, out, positions, channels, selected, tokens, frames,
                tiles_s, tiles_q, BLOCK_S=64, BLOCK_Q=64, BLOCK_C=32, PRECISION=dot_precision(),
            )  # fmt: skip
    return out


@torch.library.custom_op("vss_kernels::masked_affinity_backward", mutates_args=())
def masked_affinity_backward(
    grad: Tensor, target: Tensor, reference: Tensor, index: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of target and reference; an empty tensor for one that is not needed."""
    from vss_kernels.affinity import triton_kernels as kernels

    grad, index = grad.contiguous(), index.contiguous()
    target, reference = target.contiguous(), reference.contiguous()
    (batch, positions, channels), (_, frames, tokens, _) = target.shape, reference.shape
    selected = index.shape[2]
    grad_target = target.new_empty(target.shape if needs[0] else (0,))
    grad_reference = reference.new_empty(reference.shape if needs[1] else (0,))
    tiles_q, tiles_c = tiles(positions, 64), tiles(channels, 64)
    with device_of(target):
        if grad_target.numel() > 0:
            kernels.target_gradient_kernel[(batch * tiles_q * tiles_c,)](
                grad, reference, index, grad_target, positions, channels, selected, tokens,
                frames, tiles_q, tiles_c, BLOCK_S=32, BLOCK_Q=64, BLOCK_C=64,
                PRECISION=dot_precision(),
            )  # fmt: skip
        if grad_reference.numel() > 0:
            tiles_s = tiles(selected, 64)
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


def split_positions(positions: int, programs: int, shortest: int = 256) -> tuple[int, int]:
    """Into how many parts to split a pass over positions, and the length of one.

    Parts are about ``shortest`` long or longer, and no more than fill a GPU. The split depends on
    sizes alone, not on the GPU, so that a result can be reproduced on another one.
    """
    wanted = max(1, min(tiles(positions, shortest), 16, 1024 // max(1, programs)))
    length = max(32, tiles(positions, 32 * wanted) * 32)
    return max(1, tiles(positions, length)), length


def place_rows(rows: Tensor, index: Tensor, out: Tensor) -> None:
    """Writes the sum of ``rows`` (parts,B,R,S,C) to ``out`` (B,R,N,C) at ``index``, else zero."""
    from vss_kernels.affinity import triton_kernels as kernels

    parts, batch, frames, selected, channels = rows.shape
    tokens = out.shape[2]
    tiles_n, tiles_c = tiles(tokens, 16), tiles(channels, 64)
    kernels.place_rows_kernel[(batch * frames * tiles_n * tiles_c,)](
        rows, index, out, channels, selected, tokens, parts, batch * frames, tiles_n, tiles_c,
        BLOCK_S=128, BLOCK_N=16, BLOCK_C=64,
    )  # fmt: skip


@select_tokens.register_fake
def _(target: Tensor, reference: Tensor, num_selected: int, top: int) -> Tensor:
    return reference.new_empty(*reference.shape[:2], num_selected, dtype=torch.int64)


@masked_affinity.register_fake
def _(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    return target.new_empty(*index.shape, target.shape[1])


@masked_affinity_backward.register_fake
def _(
    grad: Tensor, target: Tensor, reference: Tensor, index: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    return (
        target.new_empty(target.shape if needs[0] else (0,)),
        reference.new_empty(reference.shape if needs[1] else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    target, reference, index = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    grads = torch.ops.vss_kernels.masked_affinity_backward(grad, target, reference, index, needs)
    return (*(g if needed else None for g, needed in zip(grads, needs, strict=True)), None)


masked_affinity.register_autograd(_backward, setup_context=_setup_context)
forbid_second_derivative("masked_affinity")


def _can_run(target: Tensor, reference: Tensor, *_: Any) -> str | None:
    reason = triton_support.refuses(target)
    if reason is None and target.shape[2] % CHANNEL_MULTIPLE != 0:
        reason = f"it takes channels in multiples of {CHANNEL_MULTIPLE}"
    return reason


def _can_select(target: Tensor, reference: Tensor, num_selected: int, top: int) -> str | None:
    if top > LARGEST_TOP:
        return f"it keeps at most {LARGEST_TOP} affinities of a token in registers"
    return _can_run(target, reference)


def _select(target: Tensor, reference: Tensor, num_selected: int, top: int) -> Tensor:
    return torch.ops.vss_kernels.select_tokens(
        target.detach(), reference.detach(), num_selected, top
    )


select_tokens_operator = Operator(
    "select_tokens",
    [
        Implementation("triton", _select, _can_select, triton_support.problem),
        Implementation("eager", without_autocast(eager.select_tokens), always, always),
    ],
)

masked_affinity_operator = Operator(
    "masked_affinity",
    [
        Implementation(
            "triton",
            torch.ops.vss_kernels.masked_affinity.default,
            _can_run,
            triton_support.problem,
        ),
        Implementation("eager", without_autocast(eager.masked_affinity), always, always),
    ],
)
