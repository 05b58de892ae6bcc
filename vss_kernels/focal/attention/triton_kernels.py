"""Triton kernel of focal_attention: gathered attention; its gradients are in gradient_kernels.py.

Names: ``p_`` pointers, ``o_`` offsets. P query positions and L key slots of a window, T tokens of a
tile, D channels of a head. Queries and results are (B, windows * P, heads, D), the tokens' keys and
values (B, N, 2, heads, D), the bias (heads, P, L), statistics (B, heads, windows, P). The tables
are explained in tables.py, the derivation in docs/focal.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

PADDING_LOGIT = tl.constexpr(-100.0)


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
def look(
    query, p_key, p_slots, p_bias, head, token_stride, token_value, o_p, o_l, o_d, scale, P, L, D,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a tile of queries and slots, [P, L], and the slots' keys and values, [L, D].

    Behind the last slot logits are minus infinity; there and in padding, keys and values are zero.
    """
    token = tl.load(p_slots + o_l, mask=o_l < L, other=-1)
    key = load_rows(p_key, token, token_stride, o_d, token >= 0, D)
    value = load_rows(p_key + token_value, token, token_stride, o_d, token >= 0, D)
    p_tile = p_bias + (head * P + o_p)[:, None] * L + o_l[None, :]
    bias = tl.load(p_tile, mask=(o_p < P)[:, None] & (o_l < L)[None, :], other=0.0)
    logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    logits += bias.to(tl.float32) + tl.where(token >= 0, 0.0, PADDING_LOGIT)[None, :]
    return tl.where((o_l < L)[None, :], logits, float("-inf")), key, value


@triton.jit(do_not_specialize=["windows", "L", "tiles_p"])
def attend_kernel(
    p_query,
    p_key_value,
    p_bias,
    p_table,
    p_out,
    p_log_sum_exp,
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

    largest = tl.full([BLOCK_P], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_P], tl.float32)
    attended = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_L):
        o_l = first + tl.arange(0, BLOCK_L)
        logits, _, value = look(
            query, p_key, p_slots, p_bias, head, token_stride, token_value, o_p, o_l, o_d, scale,
            P, L, D, PRECISION,
        )  # fmt: skip
        # The first slots are the window's own and never padding, so the maximum is finite.
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        share = tl.exp(logits - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(share, axis=1)
        attended = tl.dot(
            share.to(value.dtype), value, attended * shrink[:, None], input_precision=PRECISION
        )
        largest = larger

    p_out += b * windows * P * heads * D + head * D
    store_rows(p_out, own, heads * D, o_d, o_p < P, D, attended / total[:, None])
    p_statistic = p_log_sum_exp + ((b * heads + head) * windows + window) * P
    tl.store(p_statistic + o_p, largest + tl.log(total), mask=o_p < P)
