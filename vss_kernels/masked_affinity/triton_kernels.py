"""Triton kernels of masked_affinity; conventions as in vss_kernels/_runtime/triton_tiles.py."""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime.triton_tiles import (
    load_index,
    load_rows,
    load_tile,
    multiply,
    offsets,
    store_tile,
)


@triton.jit(do_not_specialize=["S", "N", "R", "tiles_s", "tiles_q"])
def affinity_kernel(
    p_target,
    p_reference,
    p_index,
    p_out,
    Q,
    C,
    S,
    N,
    R,
    tiles_s,
    tiles_q,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of (frames, S, Q): the kept rows times the target, gathered on the way."""
    program = tl.program_id(0)
    o_s = offsets(program % tiles_s, BLOCK_S)
    o_q = offsets(program // tiles_s % tiles_q, BLOCK_Q)
    matrix = program // tiles_s // tiles_q
    frame, clip = matrix.to(tl.int64), (matrix // R).to(tl.int64)
    token = load_index(p_index, frame, o_s, S)
    sums = tl.zeros([BLOCK_S, BLOCK_Q], tl.float32)
    for first in range(0, C, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        rows = load_rows(p_reference, frame, token, o_c, N, C)  # [BLOCK_S, BLOCK_C]
        target = load_tile(p_target, clip, o_q, o_c, Q, C)  # [BLOCK_Q, BLOCK_C]
        sums = multiply(rows, tl.trans(target), sums, PRECISION)
    store_tile(p_out, frame, o_s, o_q, S, Q, sums)


@triton.jit(do_not_specialize=["S", "N", "R", "tiles_q", "tiles_c"])
def target_gradient_kernel(
    p_grad,
    p_reference,
    p_index,
    p_out,
    Q,
    C,
    S,
    N,
    R,
    tiles_q,
    tiles_c,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the target's gradient (B, Q, C): a sum over all kept tokens of all frames."""
    program = tl.program_id(0)
    o_c = offsets(program % tiles_c, BLOCK_C)
    o_q = offsets(program // tiles_c % tiles_q, BLOCK_Q)
    clip = (program // tiles_c // tiles_q).to(tl.int64)
    sums = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
    for reference in range(R):
        frame = clip * R + reference
        for first in range(0, S, BLOCK_S):
            o_s = first + tl.arange(0, BLOCK_S)
            token = load_index(p_index, frame, o_s, S)
            grad = load_tile(p_grad, frame, o_s, o_q, S, Q)  # [BLOCK_S, BLOCK_Q]
            rows = load_rows(p_reference, frame, token, o_c, N, C)  # [BLOCK_S, BLOCK_C]
            sums = multiply(tl.trans(grad), rows, sums, PRECISION)
    store_tile(p_out, clip, o_q, o_c, Q, C, sums)


@triton.jit(do_not_specialize=["S", "R", "part_length", "frames", "tiles_s", "tiles_c"])
def row_gradient_kernel(
    p_grad,
    p_target,
    p_parts,
    Q,
    C,
    S,
    R,
    part_length,
    frames,
    tiles_s,
    tiles_c,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One part's contribution to the kept rows' gradient, (parts, frames, S, C) in float32.

    A part is a stretch of target positions. The parts run side by side, or a few tiles of S and C
    would leave most of the GPU idle; :func:`place_rows_kernel` adds them in order.
    """
    program = tl.program_id(0)
    o_s = offsets(program % tiles_s, BLOCK_S)
    o_c = offsets(program // tiles_s % tiles_c, BLOCK_C)
    matrix = program // tiles_s // tiles_c  # part * frames + frame
    frame, clip = (matrix % frames).to(tl.int64), (matrix % frames // R).to(tl.int64)
    start = tl.multiple_of(matrix // frames * part_length, 32)  # so that rows load in vectors
    sums = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first in range(start, min(start + part_length, Q), BLOCK_Q):
        o_q = first + tl.arange(0, BLOCK_Q)
        grad = load_tile(p_grad, frame, o_s, o_q, S, Q)  # [BLOCK_S, BLOCK_Q]
        target = load_tile(p_target, clip, o_q, o_c, Q, C)  # [BLOCK_Q, BLOCK_C]
        sums = multiply(grad, target, sums, PRECISION)
    store_tile(p_parts, matrix.to(tl.int64), o_s, o_c, S, C, sums)
