"""Triton kernels of select_tokens: score the reference tokens, then choose the best of a frame.

A score is made in two steps, so that parts of the target can be looked at side by side: the largest
affinities with each part, then the largest of those.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime.triton_tiles import load_tile, offsets, store_tile


@triton.jit
def keep_largest(best, affinity):
    """Moves values of ``affinity`` into ``best`` until that holds the largest of both, row by row.

    As long as some row's largest newcomer beats the smallest of its best, the two change places.
    Once a few tiles are through this is rare, and the loop ends at its first test.
    """
    o_best = tl.arange(0, best.shape[1])[None, :]
    o_new = tl.arange(0, affinity.shape[1])[None, :]
    smallest, at_smallest = tl.min(best, axis=1, return_indices=True)
    largest, at_largest = tl.max(affinity, axis=1, return_indices=True)
    while tl.max((largest > smallest).to(tl.int32), axis=0) > 0:
        better = (largest > smallest)[:, None]
        best = tl.where(better & (o_best == at_smallest[:, None]), largest[:, None], best)
        taken = better & (o_new == at_largest[:, None])
        affinity = tl.where(taken, float("-inf"), affinity)
        smallest, at_smallest = tl.min(best, axis=1, return_indices=True)
        largest, at_largest = tl.max(affinity, axis=1, return_indices=True)
    return best


@triton.jit
def sum_descending(best, top):
    """Adds the ``top`` values of each row, the largest first: equal sets have equal sums."""
    o_best = tl.arange(0, best.shape[1])[None, :]
    best = tl.where(o_best < top, best, float("-inf"))
    total = tl.zeros([best.shape[0]], tl.float32)
    for _ in range(top):
        largest, at = tl.max(best, axis=1, return_indices=True)
        total += largest
        best = tl.where(o_best == at[:, None], float("-inf"), best)
    return total


@triton.jit
def empty_top(top, BLOCK_N: tl.constexpr, TOP: tl.constexpr):
    """The best of no affinities; infinite beyond ``top``, so that nothing takes those places."""
    unused = (tl.arange(0, TOP) >= top)[None, :]
    return tl.where(unused, float("inf"), tl.full([BLOCK_N, TOP], float("-inf"), tl.float32))


@triton.jit(do_not_specialize=["N", "R", "top", "part_length", "frames", "tiles_n"])
def part_score_kernel(
    p_target,
    p_reference,
    p_parts,
    Q,
    C,
    N,
    R,
    top,
    part_length,
    frames,
    tiles_n,
    BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOP: tl.constexpr,
):
    """The ``top`` largest affinities of reference tokens with a part of the target.

    Writes (parts, frames, N, TOP), in no order. They stay in registers while the part goes by; TOP
    is the power of two that holds them. A NaN affinity makes all of a token's NaN.
    """
    program = tl.program_id(0)
    o_n = offsets(program % tiles_n, BLOCK_N)
    matrix = program // tiles_n  # part * frames + frame
    frame, clip = (matrix % frames).to(tl.int64), (matrix % frames // R).to(tl.int64)
    start = matrix // frames * part_length
    end = tl.minimum(start + part_length, Q)
    best = empty_top(top, BLOCK_N, TOP)
    has_nan = tl.zeros([BLOCK_N], tl.int32)
    for first_q in range(start, end, BLOCK_Q):
        o_q = first_q + tl.arange(0, BLOCK_Q).to(tl.int64)
        affinity = tl.zeros([BLOCK_N, BLOCK_Q], tl.float32)
        for first_c in range(0, C, BLOCK_C):
            o_c = first_c + tl.arange(0, BLOCK_C)
            rows = load_tile(p_reference, frame, o_n, o_c, N, C)  # [BLOCK_N, BLOCK_C]
            target = load_tile(p_target, clip, o_q, o_c, Q, C)  # [BLOCK_Q, BLOCK_C]
            affinity = tl.dot(rows, tl.trans(target), affinity, input_precision="ieee")
        inside = (o_q < end)[None, :]
        has_nan |= tl.max((inside & (affinity != affinity)).to(tl.int32), axis=1)
        affinity = tl.where(inside & (affinity == affinity), affinity, float("-inf"))
        best = keep_largest(best, affinity)
    best = tl.where((has_nan > 0)[:, None], float("nan"), best)
    store_tile(p_parts, matrix.to(tl.int64), o_n, tl.arange(0, TOP), N, TOP, best)


@triton.jit(do_not_specialize=["N", "top", "parts", "frames", "tiles_n"])
def score_kernel(
    p_parts, p_scores, N, top, parts, frames, tiles_n, BLOCK_N: tl.constexpr, TOP: tl.constexpr
):
    """Scores (frames, N): the sum of each reference token's ``top`` largest affinities.

    A NaN affinity makes the score NaN, as it does in torch.topk.
    """
    program = tl.program_id(0)
    o_n = offsets(program % tiles_n, BLOCK_N)
    frame = (program // tiles_n).to(tl.int64)
    o_best = tl.arange(0, TOP)
    best = empty_top(top, BLOCK_N, TOP)
    has_nan = tl.zeros([BLOCK_N], tl.int32)
    for part in range(parts):
        affinity = load_tile(p_parts, part * frames + frame, o_n, o_best, N, TOP)
        has_nan |= tl.max((affinity != affinity).to(tl.int32), axis=1)
        used = (o_best < top)[None, :] & (affinity == affinity)
        best = keep_largest(best, tl.where(used, affinity, float("-inf")))
    scores = tl.where(has_nan > 0, float("nan"), sum_descending(best, top))
    tl.store(p_scores + frame * N + o_n, scores, mask=o_n < N)


@triton.jit
def load_keys(p_scores, frame, o_n, N):
    """Scores as positive integers in the same order; NaN as minus infinity; 0 past the end."""
    scores = tl.load(p_scores + frame * N + o_n, mask=o_n < N, other=0.0)
    scores = tl.where(scores == scores, scores, float("-inf"))
    scores = tl.where(scores == 0.0, 0.0, scores)  # -0 and +0 are equal, their bits are not
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative numbers count down in their bits
    return tl.where(o_n < N, ordered.to(tl.int64) + 2**31, 0)


@triton.jit(do_not_specialize=["N", "S"])
def choose_kernel(p_scores, p_index, N, S, BLOCK_N: tl.constexpr):
    """Writes the positions of a frame's S best scores, ascending, to index (frames, S).

    The S-th best key is found bit by bit from the top: a bit belongs to it if at least S keys reach
    that far. Everything above it is kept, and of its equals the first ones up to S.
    """
    frame = tl.program_id(0).to(tl.int64)
    threshold = tl.zeros([], tl.int64)
    for bit in range(32):
        candidate = threshold + (tl.full([], 2**31, tl.int64) >> bit)
        reaching = tl.zeros([BLOCK_N], tl.int32)
        for first in range(0, N, BLOCK_N):
            keys = load_keys(p_scores, frame, first + tl.arange(0, BLOCK_N), N)
            reaching += (keys >= candidate).to(tl.int32)
        threshold = tl.where(tl.sum(reaching) >= S, candidate, threshold)
    above = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, N, BLOCK_N):
        keys = load_keys(p_scores, frame, first + tl.arange(0, BLOCK_N), N)
        above += (keys > threshold).to(tl.int32)
    ties_kept = S - tl.sum(above)
    ties_seen = tl.zeros([], tl.int32)
    written = tl.zeros([], tl.int32)
    for first in range(0, N, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        keys = load_keys(p_scores, frame, o_n, N)
        tied = (keys == threshold).to(tl.int32)
        keep = (keys > threshold) | ((tied > 0) & (ties_seen + tl.cumsum(tied) <= ties_kept))
        keep = keep.to(tl.int32)
        position = written + tl.cumsum(keep) - keep
        tl.store(p_index + frame * S + position, o_n.to(tl.int64), mask=keep > 0)
        ties_seen += tl.sum(tied)
        written += tl.sum(keep)
