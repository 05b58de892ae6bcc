"""Triton kernel of focal_attention: gathered attention; its gradients are in gradient_kernels.py.

Names: ``p_`` pointers, ``o_`` offsets. P query positions and L key slots of a window, T tokens of a
tile, D channels of a head. Queries and results are (B, windows * P, heads, D), the tokens' keys and
values (B, N, 2, heads, D), the bias (heads, P, L). The softmax's statistics, (B, heads, windows, 2,
P), are the largest logit and one over the sum of exponentials. The tables are explained in
tables.py, the derivation in docs/focal.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime.triton_tiles import multiply

LOG2_E = tl.constexpr(1.4426950408889634)
PADDING_LOGIT = tl.constexpr(-100.0)


@triton.jit
def exponential(x):
    """exp(x), denormals flushed to zero; tl.exp spends instructions on keeping them."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def relative_weight(product, bias, largest):
    """exp(product + bias - largest), as exact for logits of a hundred as for small ones.

    Their sum would be rounded like a hundred. The difference of the product and the largest logit
    is exact where they are close, that is where the weight matters, and the small bias keeps its
    digits beside it.
    """
    return exponential((product - largest) + bias)


@triton.jit
def load_rows(p_rows, tokens, token_stride, o_d, inside, D):
    """Rows of D channels at the given tokens, [tokens, D]; zeros where not inside."""
    p_tile = p_rows + tokens.to(tl.int64)[:, None] * token_stride + o_d[None, :]
    return tl.load(p_tile, mask=inside[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(p_rows, tokens, token_stride, o_d, inside, D, rows):
    """Writes rows of D channels, [tokens, D], where inside."""
    p_tile = p_rows + tokens.to(tl.int64)[:, None] * token_stride + o_d[None, :]
    rows = rows.to(p_rows.dtype.element_ty)
    tl.store(p_tile, rows, mask=inside[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["L", "row_length"])
def widen_bias_kernel(p_bias, p_out, L, row_length, BLOCK_L: tl.constexpr):
    """One row of the bias in float32, with minus infinity behind the last slot.

    Rows of a whole number of tiles need no masks, and four numbers are loaded at once.
    """
    row = tl.program_id(0).to(tl.int64)
    for first in range(0, row_length, BLOCK_L):
        o_l = first + tl.arange(0, BLOCK_L)
        bias = tl.load(p_bias + row * L + o_l, mask=o_l < L, other=float("-inf"))
        tl.store(p_out + row * row_length + o_l, bias.to(tl.float32), mask=o_l < row_length)


@triton.jit
def locate_queries(p_table, windows, heads, P, L, tiles_p, BLOCK_P: tl.constexpr):
    """What a program owns: clip, head, window, query positions, their tokens, the window's slots.

    The first P slots of a window are its own positions, in the order of its queries.
    """
    program = tl.program_id(0)
    window = program // tiles_p % windows
    head = program // (tiles_p * windows) % heads
    b = (program // (tiles_p * windows * heads)).to(tl.int64)
    o_p = program % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    p_slots = p_table + window.to(tl.int64) * L
    return b, head, window, o_p, tl.load(p_slots + o_p, mask=o_p < P, other=0), p_slots


@triton.jit
def score_tile(
    query, p_key, p_slots, p_bias, token_stride, token_value, o_l, o_d, scale, L, D,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Products and bias of queries and slots, [P, L], and the slots' keys and values, [L, D].

    The logits are their sum, which relative_weight() takes apart for accuracy. Behind the last slot
    the bias is minus infinity; there and in padding, keys and values are zero. ``p_bias`` points to
    the rows of the queries, [P, 1].
    """
    token = tl.load(p_slots + o_l, mask=o_l < L, other=-1)
    key = load_rows(p_key, token, token_stride, o_d, token >= 0, D)
    value = load_rows(p_key + token_value, token, token_stride, o_d, token >= 0, D)
    bias = tl.load(p_bias + o_l[None, :]) + tl.where(token >= 0, 0.0, PADDING_LOGIT)[None, :]
    product = multiply(query, tl.trans(key), None, PRECISION) * scale
    return product, bias, key, value


@triton.jit
def bias_rows(p_bias, head, o_p, P, row_length):
    """Where the widened bias has the rows of queries; behind the last one, that one's again."""
    return p_bias + (head * P + tl.minimum(o_p, P - 1))[:, None] * row_length


@triton.jit(do_not_specialize=["windows", "L", "tiles_p"])
def attend_kernel(
    p_query,
    p_key_value,
    p_bias,
    p_table,
    p_out,
    p_statistics,
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
    """One tile of a window's queries for one clip and head; softmax on the fly over the slots."""
    b, head, window, o_p, own, p_slots = locate_queries(
        p_table, windows, heads, P, L, tiles_p, BLOCK_P
    )
    o_d = tl.arange(0, BLOCK_D)
    p_query += b * query_batch + head * query_head
    query = load_rows(p_query, own, query_token, o_d, o_p < P, D)
    p_key = p_key_value + b * token_batch + head * token_head
    p_bias = bias_rows(p_bias, head, o_p, P, row_length)

    largest = tl.full([BLOCK_P], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_P], tl.float32)
    attended = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_L):
        o_l = first + tl.arange(0, BLOCK_L)
        product, bias, _, value = score_tile(
            query, p_key, p_slots, p_bias, token_stride, token_value, o_l, o_d, scale, L, D,
            PRECISION,
        )  # fmt: skip
        # The first slots are the window's own and never padding, so the maximum is finite.
        larger = tl.maximum(largest, tl.max(product + bias, axis=1))
        weight = relative_weight(product, bias, larger[:, None])
        shrink = exponential(largest - larger)
        total = total * shrink + tl.sum(weight, axis=1)
        attended = multiply(weight.to(value.dtype), value, attended * shrink[:, None], PRECISION)
        largest = larger

    p_out += b * windows * P * heads * D + head * D
    store_rows(p_out, own, heads * D, o_d, o_p < P, D, attended / total[:, None])
    p_statistics += ((b * heads + head) * windows + window) * 2 * P
    tl.store(p_statistics + o_p, largest, mask=o_p < P)
    tl.store(p_statistics + P + o_p, 1.0 / total, mask=o_p < P)
