"""Triton kernels of focal_attention's gradients, without atomics. Names as in triton_kernels.py.

All of them compute a tile's softmax again from its saved statistics. The gradient of the logits is
``probability * (grad . value - delta)`` with ``delta = grad . out``, one number per query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime.triton_tiles import multiply
from vss_kernels.focal_attention.triton_kernels import (
    bias_rows,
    exponential,
    load_rows,
    locate_queries,
    relative_weight,
    score_tile,
    store_rows,
)


@triton.jit
def load_statistics(p_statistics, b, head, window, windows, heads, o_p, P):
    """The largest logit of queries, and one over their sum: zero behind the last query.

    Together in one number, the log-sum-exp, the sum would lose its digits beside a large logit.
    """
    p_largest = p_statistics + ((b * heads + head) * windows + window) * 2 * P + o_p
    largest = tl.load(p_largest, mask=o_p < P, other=float("inf"))
    return largest, tl.load(p_largest + P, mask=o_p < P, other=0.0)


@triton.jit
def logit_gradient(probability, grad, value, delta, PRECISION: tl.constexpr):
    """Gradient of the logits, [P, L], from the softmax and the gradient of what it weighted."""
    product = multiply(grad, tl.trans(value), None, PRECISION)
    return probability * (product - delta[:, None])


@triton.jit(do_not_specialize=["windows", "L", "tiles_p"])
def query_gradient_kernel(
    p_grad,
    p_out,
    p_query,
    p_key_value,
    p_bias,
    p_table,
    p_statistics,
    p_delta,
    p_grad_query,
    query_batch,
    query_token,
    query_head,
    token_batch,
    token_stride,
    token_value,
    token_head,
    scale,
    windows,
    heads,
    P,
    L,
    D,
    row_length,
    tiles_p,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of one tile of queries; also writes delta = grad . out for the other kernels."""
    b, head, window, o_p, own, p_slots = locate_queries(
        p_table, windows, heads, P, L, tiles_p, BLOCK_P
    )
    o_d = tl.arange(0, BLOCK_D)
    p_query += b * query_batch + head * query_head
    query = load_rows(p_query, own, query_token, o_d, o_p < P, D)
    here = b * windows * P * heads * D + head * D
    grad = load_rows(p_grad + here, own, heads * D, o_d, o_p < P, D)
    out = load_rows(p_out + here, own, heads * D, o_d, o_p < P, D)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(p_delta + ((b * heads + head) * windows + window) * P + o_p, delta, mask=o_p < P)
    largest, over_total = load_statistics(p_statistics, b, head, window, windows, heads, o_p, P)
    p_key = p_key_value + b * token_batch + head * token_head
    p_bias = bias_rows(p_bias, head, o_p, P, row_length)

    grad_query = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_L):
        o_l = first + tl.arange(0, BLOCK_L)
        product, bias, key, value = score_tile(
            query, p_key, p_slots, p_bias, token_stride, token_value, o_l, o_d, scale, L, D,
            PRECISION,
        )  # fmt: skip
        probability = relative_weight(product, bias, largest[:, None]) * over_total[:, None]
        grad_logits = logit_gradient(probability, grad, value, delta, PRECISION)
        grad_query = multiply(grad_logits.to(key.dtype), key, grad_query, PRECISION)
    store_rows(p_grad_query + here, own, heads * D, o_d, o_p < P, D, grad_query * scale)


@triton.jit(do_not_specialize=["windows", "count", "length", "L", "tiles_p", "tiles_l"])
def bias_gradient_kernel(
    p_grad,
    p_query,
    p_key_value,
    p_bias,
    p_table,
    p_statistics,
    p_delta,
    p_parts,
    query_batch,
    query_token,
    query_head,
    token_batch,
    token_stride,
    token_value,
    token_head,
    scale,
    windows,
    count,
    length,
    heads,
    P,
    L,
    D,
    row_length,
    tiles_p,
    tiles_l,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the bias's gradient, (parts, heads, P, L), over ``length`` windows of all clips.

    ``count`` is the number of windows of all clips.
    """
    program = tl.program_id(0)
    o_p = program % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_l = program // tiles_p % tiles_l * BLOCK_L + tl.arange(0, BLOCK_L)
    head = program // (tiles_p * tiles_l) % heads
    part = program // (tiles_p * tiles_l * heads)
    o_d = tl.arange(0, BLOCK_D)
    p_bias = bias_rows(p_bias, head, o_p, P, row_length)
    total = tl.zeros([BLOCK_P, BLOCK_L], tl.float32)
    for index in range(part * length, tl.minimum(count, (part + 1) * length)):
        b = (index // windows).to(tl.int64)
        window = index % windows
        p_slots = p_table + window.to(tl.int64) * L
        own = tl.load(p_slots + o_p, mask=o_p < P, other=0)
        p_rows = p_query + b * query_batch + head * query_head
        query = load_rows(p_rows, own, query_token, o_d, o_p < P, D)
        here = b * windows * P * heads * D + head * D
        grad = load_rows(p_grad + here, own, heads * D, o_d, o_p < P, D)
        largest, over_total = load_statistics(p_statistics, b, head, window, windows, heads, o_p, P)
        delta = tl.load(
            p_delta + ((b * heads + head) * windows + window) * P + o_p, mask=o_p < P, other=0.0
        )
        p_key = p_key_value + b * token_batch + head * token_head
        product, bias, _, value = score_tile(
            query, p_key, p_slots, p_bias, token_stride, token_value, o_l, o_d, scale, L, D,
            PRECISION,
        )  # fmt: skip
        probability = relative_weight(product, bias, largest[:, None]) * over_total[:, None]
        total += logit_gradient(probability, grad, value, delta, PRECISION)
    p_tile = p_parts + ((part * heads + head).to(tl.int64) * P + o_p)[:, None] * L + o_l[None, :]
    tl.store(p_tile, total, mask=(o_p < P)[:, None] & (o_l < L)[None, :])


@triton.jit(do_not_specialize=["rows", "L", "tiles_r"])
def transposed_bias_kernel(
    p_bias,
    p_sources,
    p_out,
    rows,
    P,
    L,
    row_length,
    tiles_r,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The bias by slots, (heads, rows, row_length) in float32.

    A row of two slots holds the logarithm of the sum of their exponentials: both have the same
    product of query and key, so their probabilities add up to that of this one bias.
    """
    program = tl.program_id(0)
    head = program // tiles_r
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    one = tl.load(p_sources + o_r * 2, mask=o_r < rows, other=0)[:, None]
    other = tl.load(p_sources + o_r * 2 + 1, mask=o_r < rows, other=-1)[:, None]
    for first in range(0, P, BLOCK_P):
        o_p = (first + tl.arange(0, BLOCK_P))[None, :]
        inside = (o_r < rows)[:, None] & (o_p < P)
        p_tile = p_bias + (head * P + o_p) * L
        bias = tl.load(p_tile + one, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(p_tile + other, mask=inside & (other >= 0), other=float("-inf"))
        second = second.to(tl.float32)
        largest = tl.maximum(bias, second)
        apart = tl.where(bias == second, 0.0, tl.minimum(bias, second) - largest)
        joined = largest + tl.log(1.0 + exponential(apart))
        bias = tl.where(other >= 0, joined, bias)
        p_row = p_out + (head * rows + o_r[:, None]) * row_length + o_p
        tl.store(p_row, bias, mask=(o_r < rows)[:, None] & (o_p < row_length))


@triton.jit(do_not_specialize=["windows", "items", "N", "L", "rows", "batch"])
def token_gradient_kernel(
    p_grad,
    p_query,
    p_key_value,
    p_transposed_bias,
    p_table,
    p_statistics,
    p_delta,
    p_tokens,
    p_windows,
    p_rows,
    p_items,
    p_grad_key_value,
    p_parts,
    query_batch,
    query_token,
    query_head,
    token_batch,
    token_stride,
    token_value,
    token_head,
    scale,
    windows,
    items,
    batch,
    heads,
    N,
    P,
    L,
    D,
    rows,
    row_length,
    tiles_p,
    TILE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the keys and values of one tile of tokens, over the windows of one item.

    The only item of a tile writes its result; of several, each writes its part, (parts, batch,
    heads, 2, TILE, D), for sum_parts_kernel.
    """
    program = tl.program_id(0)
    item = program % items
    head = program // items % heads
    b = (program // (items * heads)).to(tl.int64)
    tile = tl.load(p_items + item * 4)
    first = tl.load(p_items + item * 4 + 1)
    end = tl.load(p_items + item * 4 + 2)
    part = tl.load(p_items + item * 4 + 3)
    o_t = tl.arange(0, TILE)
    o_d = tl.arange(0, BLOCK_D)
    token = tl.load(p_tokens + tile * TILE + o_t)
    p_key = p_key_value + b * token_batch + head * token_head
    key = load_rows(p_key, token, token_stride, o_d, token >= 0, D)
    value = load_rows(p_key + token_value, token, token_stride, o_d, token >= 0, D)
    p_query += b * query_batch + head * query_head
    p_grad += b * windows * P * heads * D + head * D

    grad_key = tl.zeros([TILE, BLOCK_D], tl.float32)
    grad_value = tl.zeros([TILE, BLOCK_D], tl.float32)
    # One loop over entries and tiles of queries, since only innermost loops load ahead.
    for step in range(first * tiles_p, end * tiles_p):
        entry = step // tiles_p
        o_p = step % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
        window = tl.load(p_windows + entry)
        row = tl.load(p_rows + entry * TILE + o_t)
        own = tl.load(p_table + window.to(tl.int64) * L + o_p, mask=o_p < P, other=0)
        query = load_rows(p_query, own, query_token, o_d, o_p < P, D)
        grad = load_rows(p_grad, own, heads * D, o_d, o_p < P, D)
        largest, over_total = load_statistics(p_statistics, b, head, window, windows, heads, o_p, P)
        delta = tl.load(
            p_delta + ((b * heads + head) * windows + window) * P + o_p, mask=o_p < P, other=0.0
        )
        p_bias = p_transposed_bias + (head * rows + row)[:, None] * row_length + o_p[None, :]
        bias = tl.load(p_bias, mask=(row >= 0)[:, None], other=float("-inf"))
        product = multiply(key, tl.trans(query), None, PRECISION) * scale
        probability = relative_weight(product, bias, largest[None, :]) * over_total[None, :]
        grad_probability = multiply(value, tl.trans(grad), None, PRECISION)
        grad_logits = probability * (grad_probability - delta[None, :])
        grad_value = multiply(probability.to(grad.dtype), grad, grad_value, PRECISION)
        grad_key = multiply(grad_logits.to(query.dtype), query, grad_key, PRECISION)
    grad_key *= scale
    if part < 0:
        p_result = p_grad_key_value + (b * N * 2 * heads + head) * D
        store_rows(p_result, token, 2 * heads * D, o_d, token >= 0, D, grad_key)
        store_rows(p_result + heads * D, token, 2 * heads * D, o_d, token >= 0, D, grad_value)
    else:
        p_part = p_parts + ((part * batch + b) * heads + head) * 2 * TILE * D
        store_rows(p_part, o_t, D, o_d, token >= 0, D, grad_key)
        store_rows(p_part + TILE * D, o_t, D, o_d, token >= 0, D, grad_value)


@triton.jit(do_not_specialize=["sums", "N", "batch"])
def sum_parts_kernel(
    p_parts,
    p_tokens,
    p_sums,
    p_grad_key_value,
    sums,
    batch,
    heads,
    N,
    D,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds up the parts of one tile that several items shared, for one clip and head."""
    program = tl.program_id(0)
    row = program % sums
    head = program // sums % heads
    b = (program // (sums * heads)).to(tl.int64)
    tile = tl.load(p_sums + row * 3)
    first = tl.load(p_sums + row * 3 + 1)
    end = tl.load(p_sums + row * 3 + 2)
    o_t = tl.arange(0, TILE)
    o_d = tl.arange(0, BLOCK_D)
    token = tl.load(p_tokens + tile * TILE + o_t)
    grad_key = tl.zeros([TILE, BLOCK_D], tl.float32)
    grad_value = tl.zeros([TILE, BLOCK_D], tl.float32)
    for part in range(first, end):
        p_part = p_parts + ((part * batch + b) * heads + head) * 2 * TILE * D
        grad_key += load_rows(p_part, o_t, D, o_d, token >= 0, D)
        grad_value += load_rows(p_part + TILE * D, o_t, D, o_d, token >= 0, D)
    p_rows = p_grad_key_value + (b * N * 2 * heads + head) * D
    store_rows(p_rows, token, 2 * heads * D, o_d, token >= 0, D, grad_key)
    store_rows(p_rows + heads * D, token, 2 * heads * D, o_d, token >= 0, D, grad_value)
