"""Triton kernels of masked_affinity, and the pieces that attend_selected shares.

All tensors are contiguous. A frame is one reference frame of one clip, clip-major, so frame f
belongs to clip f // R. Sizes are ordinary arguments, so that one compiled kernel serves every size;
offsets are 64-bit. docs/relation.md derives the tiling.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_index(p_index, frame, o_s, S):
    """Token positions of the kept tokens ``o_s`` of a frame; -1 past the end."""
    return tl.load(p_index + frame * S + o_s, mask=o_s < S, other=-1)


@triton.jit
def load_rows(p_tokens, frame, token, o_c, N, C):
    """Rows ``token`` of a frame's tokens, [len(token), len(o_c)]; zero outside [0, N) and C."""
    inside = (token >= 0) & (token < N)
    p_rows = p_tokens + (frame * N + token)[:, None] * C + o_c[None, :]
    return tl.load(p_rows, mask=inside[:, None] & (o_c < C)[None, :], other=0.0)


@triton.jit
def load_tile(p_matrix, matrix, o_row, o_column, rows, columns):
    """A tile of one (rows, columns) matrix of a stack; zero outside."""
    p_tile = p_matrix + (matrix * rows + o_row)[:, None] * columns + o_column[None, :]
    return tl.load(p_tile, mask=(o_row < rows)[:, None] & (o_column < columns)[None, :], other=0.0)


@triton.jit
def store_tile(p_matrix, matrix, o_row, o_column, rows, columns, tile):
    """Stores a tile of one (rows, columns) matrix of a stack in the stack's dtype."""
    p_tile = p_matrix + (matrix * rows + o_row)[:, None] * columns + o_column[None, :]
    inside = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    tl.store(p_tile, tile.to(p_matrix.dtype.element_ty), mask=inside)


@triton.jit
def offsets(tile, BLOCK: tl.constexpr):
    """The 64-bit positions in a tile."""
    return tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


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
        sums = tl.dot(rows, tl.trans(target), sums, input_precision=PRECISION)
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
            sums = tl.dot(tl.trans(grad), rows, sums, input_precision=PRECISION)
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
    """One part's share of the kept rows' gradient, (parts, frames, S, C) in float32.

    A part is a stretch of target positions. The parts run side by side, or a few tiles of S and C
    would leave most of the GPU idle; :func:`place_rows_kernel` adds them in order.
    """
    program = tl.program_id(0)
    o_s = offsets(program % tiles_s, BLOCK_S)
    o_c = offsets(program // tiles_s % tiles_c, BLOCK_C)
    matrix = program // tiles_s // tiles_c  # part * frames + frame
    frame, clip = (matrix % frames).to(tl.int64), (matrix % frames // R).to(tl.int64)
    start = matrix // frames * part_length
    sums = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first in range(start, min(start + part_length, Q), BLOCK_Q):
        o_q = first + tl.arange(0, BLOCK_Q)
        grad = load_tile(p_grad, frame, o_s, o_q, S, Q)  # [BLOCK_S, BLOCK_Q]
        target = load_tile(p_target, clip, o_q, o_c, Q, C)  # [BLOCK_Q, BLOCK_C]
        sums = tl.dot(grad, target, sums, input_precision=PRECISION)
    store_tile(p_parts, matrix.to(tl.int64), o_s, o_c, S, C, sums)


@triton.jit
def next_slot(p_index, frame, o_n, previous, S, BLOCK_S: tl.constexpr):
    """The first kept token after ``previous`` that is token ``o_n``; S where there is none."""
    found = previous * 0 + S
    for first in range(0, S, BLOCK_S):
        o_s = first + tl.arange(0, BLOCK_S)
        token = load_index(p_index, frame, o_s, S)
        match = (token[None, :] == o_n[:, None]) & (o_s[None, :] > previous[:, None])
        found = tl.minimum(found, tl.min(tl.where(match, o_s[None, :], S), axis=1))
    return found


@triton.jit(do_not_specialize=["S", "N", "parts", "frames", "tiles_n", "tiles_c"])
def place_rows_kernel(
    p_parts,
    p_index,
    p_out,
    C,
    S,
    N,
    parts,
    frames,
    tiles_n,
    tiles_c,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds up the parts of kept rows (parts, frames, S, C) and puts them where they came from.

    Each program looks for its own tokens in the index, so nothing is scattered: rows that were not
    kept get zero, a position that was given twice gets the sum, always in the same order.
    """
    program = tl.program_id(0)
    o_c = offsets(program % tiles_c, BLOCK_C)
    o_n = offsets(program // tiles_c % tiles_n, BLOCK_N)
    frame = (program // tiles_c // tiles_n).to(tl.int64)
    sums = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    slot = next_slot(p_index, frame, o_n, o_n * 0 - 1, S, BLOCK_S)
    while tl.min(slot, axis=0) < S:
        for part in range(parts):
            sums += load_rows(p_parts, part * frames + frame, slot, o_c, S, C)
        slot = next_slot(p_index, frame, o_n, slot, S, BLOCK_S)
    store_tile(p_out, frame, o_n, o_c, N, C, sums)
