"""Gradients of kept tokens' rows, put back where the tokens came from without atomics.

Shared by masked_affinity (rows of the references) and attend_selected (rows of the values).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime.triton_tiles import load_index, load_rows, offsets, store_tile


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
