"""select_tokens as a registered operator: fake and backends; a choice has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime import native, triton_support
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels._runtime.registration import python_operator
from vss_kernels._runtime.token_rows import split_positions
from vss_kernels._runtime.triton_support import cdiv, device_of, refuses_tokens
from vss_kernels.select_tokens import eager

LARGEST_TOP = 128
"""Affinities of a token that the fused backends keep."""


@python_operator("select_tokens")
def select_tokens(
    target: Tensor, reference: Tensor, num_selected: int, top: int, use_triton: bool
) -> Tensor:
    """Chooses tokens in three launches: scores of all frames' tokens in two, then the choice."""
    if not use_triton:
        return torch.ops.vss_kernels.select_tokens_cpu(target, reference, num_selected, top)
    from vss_kernels.select_tokens import triton_kernels as kernels

    target, reference = target.contiguous(), reference.contiguous()
    (_, positions, channels), (batch, frames, tokens, _) = target.shape, reference.shape
    scores = target.new_empty(batch, frames, tokens, dtype=torch.float32)
    index = target.new_empty(batch, frames, num_selected, dtype=torch.int64)
    if index.numel() == 0:
        return index
    top_kept = max(2, 1 << (top - 1).bit_length())
    matrices, tiles_n = batch * frames, cdiv(tokens, 16)
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


@select_tokens.register_fake
def _(target: Tensor, reference: Tensor, num_selected: int, top: int, use_triton: bool) -> Tensor:
    return reference.new_empty(*reference.shape[:2], num_selected, dtype=torch.int64)


def _refuses_top(top: int) -> str | None:
    return None if top <= LARGEST_TOP else f"it keeps at most {LARGEST_TOP} affinities of a token"


def _triton_can_run(target: Tensor, reference: Tensor, num_selected: int, top: int) -> str | None:
    return _refuses_top(top) or refuses_tokens(target)


def _native_can_run(target: Tensor, reference: Tensor, num_selected: int, top: int) -> str | None:
    return _refuses_top(top) or native.refuses_cpu(target)


def _run_triton(target: Tensor, reference: Tensor, num_selected: int, top: int) -> Tensor:
    return torch.ops.vss_kernels.select_tokens(
        target.detach(), reference.detach(), num_selected, top, True
    )


def _run_native(target: Tensor, reference: Tensor, num_selected: int, top: int) -> Tensor:
    return torch.ops.vss_kernels.select_tokens(
        target.detach(), reference.detach(), num_selected, top, False
    )


operator = Operator(
    "select_tokens",
    [
        Implementation("triton", _run_triton, _triton_can_run, triton_support.problem),
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.select_tokens), always, always),
    ],
)
