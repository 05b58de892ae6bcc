"""Triton kernels of attend_selected. Conventions as in vss_kernels/_runtime/triton_tiles.py."""

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


@triton.jit
def load_affinity(p_affinity, frame, o_s, o_q, S, Q):
    """A tile of a frame's affinity in float32; minus infinity outside, which weighs nothing."""
    p_tile = p_affinity + (frame * S + o_s)[:, None] * Q + o_q[None, :]
    inside = (o_s < S)[:, None] & (o_q < Q)[None, :]
    return tl.load(p_tile, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def load_probability(p_affinity, p_statistics, frame, o_s, o_q, S, Q):
    """A tile of the softmax over S, from its saved maximum and sum."""
    inside = o_q < Q
    largest = tl.load(p_statistics + 2 * frame * Q + o_q, mask=inside, other=0.0)
    total = tl.load(p_statistics + (2 * frame + 1) * Q + o_q, mask=inside, other=1.0)
    affinity = load_affinity(p_affinity, frame, o_s, o_q, S, Q)
    return tl.exp(affinity - largest[None, :]) / total[None, :]


@triton.jit(do_not_specialize=["S", "N", "tiles_q", "tiles_e"])
def attend_kernel(
    p_affinity,
    p_value,
    p_index,
    p_out,
    p_statistics,
    Q,
    E,
    S,
    N,
    tiles_q,
    tiles_e,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of (frames, Q, E): softmax over S on the fly, times the gathered values.

    The largest affinity so far is subtracted before the exponential; whenever it grows, what was
    summed before is scaled down to it. That maximum and the sum of exponentials are the statistics,
    (frames, 2, Q), from which the backward pass computes the softmax again; their logarithm in one
    number would lose digits where affinities are large.
    """
    program = tl.program_id(0)
    tile_e = program % tiles_e
    o_e = offsets(tile_e, BLOCK_E)
    o_q = offsets(program // tiles_e % tiles_q, BLOCK_Q)
    frame = (program // tiles_e // tiles_q).to(tl.int64)
    largest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    base = tl.zeros([BLOCK_Q], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sums = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    for first in range(0, S, BLOCK_S):
        o_s = first + tl.arange(0, BLOCK_S)
        affinity = load_affinity(p_affinity, frame, o_s, o_q, S, Q)  # [BLOCK_S, BLOCK_Q]
        larger = tl.maximum(largest, tl.max(affinity, axis=0))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # else -inf - -inf: NaN
        weight = tl.exp(affinity - base[None, :])
        scale = tl.exp(largest - base)
        rows = load_rows(
            p_value, frame, load_index(p_index, frame, o_s, S), o_e, N, E
        )  # [BLOCK_S, BLOCK_E]
        total = total * scale + tl.sum(weight, axis=0)
        sums = multiply(tl.trans(weight.to(rows.dtype)), rows, sums * scale[:, None], PRECISION)
        largest = larger
    store_tile(p_out, frame, o_q, o_e, Q, E, sums / total[:, None])
    if tile_e == 0:
        tl.store(p_statistics + 2 * frame * Q + o_q, base, mask=o_q < Q)
        tl.store(p_statistics + (2 * frame + 1) * Q + o_q, total, mask=o_q < Q)


@triton.jit
def probability_gradient(
    p_grad, p_value, frame, token, o_q, Q, E, N,
    BLOCK_S: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_S, BLOCK_Q] of the softmax's gradient: kept values times result's gradient."""
    sums = tl.zeros([BLOCK_S, BLOCK_Q], tl.float32)
    for first in range(0, E, BLOCK_E):
        o_e = first + tl.arange(0, BLOCK_E)
        rows = load_rows(p_value, frame, token, o_e, N, E)  # [BLOCK_S, BLOCK_E]
        grad = load_tile(p_grad, frame, o_q, o_e, Q, E)  # [BLOCK_Q, BLOCK_E]
        sums = multiply(rows, tl.trans(grad), sums, PRECISION)
    return sums


@triton.jit(do_not_specialize=["S", "N", "tiles_q"])
def affinity_gradient_kernel(
    p_grad,
    p_affinity,
    p_statistics,
    p_value,
    p_index,
    p_out,
    Q,
    E,
    S,
    N,
    tiles_q,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of all S affinities of one tile of target positions.

    Each is p (g - mean), where p is its probability, g the gradient of that and mean the average
    of g over the S tokens weighted by p. The first pass finds the mean, the second computes g again
    rather than storing it.
    """
    program = tl.program_id(0)
    o_q = offsets(program % tiles_q, BLOCK_Q)
    frame = (program // tiles_q).to(tl.int64)
    mean = tl.zeros([BLOCK_Q], tl.float32)
    for first in range(0, S, BLOCK_S):
        o_s = first + tl.arange(0, BLOCK_S)
        token = load_index(p_index, frame, o_s, S)
        probability = load_probability(p_affinity, p_statistics, frame, o_s, o_q, S, Q)
        grad = probability_gradient(
            p_grad, p_value, frame, token, o_q, Q, E, N, BLOCK_S, BLOCK_Q, BLOCK_E, PRECISION
        )
        mean += tl.sum(probability * grad, axis=0)
    for first in range(0, S, BLOCK_S):
        o_s = first + tl.arange(0, BLOCK_S)
        token = load_index(p_index, frame, o_s, S)
        probability = load_probability(p_affinity, p_statistics, frame, o_s, o_q, S, Q)
        grad = probability_gradient(
            p_grad, p_value, frame, token, o_q, Q, E, N, BLOCK_S, BLOCK_Q, BLOCK_E, PRECISION
        )
        store_tile(p_out, frame, o_s, o_q, S, Q, probability * (grad - mean[None, :]))


@triton.jit(do_not_specialize=["S", "part_length", "frames", "tiles_s", "tiles_e"])
def value_row_gradient_kernel(
    p_grad,
    p_affinity,
    p_statistics,
    p_parts,
    Q,
    E,
    S,
    part_length,
    frames,
    tiles_s,
    tiles_e,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One part's contribution to the kept values' gradient, (parts, frames, S, E) in float32.

    A part is a stretch of target positions, as in row_gradient_kernel of the affinity.
    """
    program = tl.program_id(0)
    o_s = offsets(program % tiles_s, BLOCK_S)
    o_e = offsets(program // tiles_s % tiles_e, BLOCK_E)
    matrix = program // tiles_s // tiles_e  # part * frames + frame
    frame = (matrix % frames).to(tl.int64)
    start = tl.multiple_of(matrix // frames * part_length, 32)  # so that rows load in vectors
    sums = tl.zeros([BLOCK_S, BLOCK_E], tl.float32)
    for first in range(start, min(start + part_length, Q), BLOCK_Q):
        o_q = first + tl.arange(0, BLOCK_Q)
        probability = load_probability(p_affinity, p_statistics, frame, o_s, o_q, S, Q)
        grad = load_tile(p_grad, frame, o_q, o_e, Q, E)  # [BLOCK_Q, BLOCK_E]
        sums = multiply(probability.to(grad.dtype), grad, sums, PRECISION)
    store_tile(p_parts, matrix.to(tl.int64), o_s, o_e, S, E, sums)
