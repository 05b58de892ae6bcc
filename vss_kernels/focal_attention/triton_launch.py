"""Launches the Triton kernels of focal_attention."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.triton_support import cdiv, device_of, dot_precision
from vss_kernels.focal_attention.tables import TILE, InverseTable

LARGEST_DIM = 128
"""Channels of a head that the kernels keep in registers."""

BLOCK_L = 32
MOST_PARTS = 16
"""Partial sums of the bias's gradient, each as large as the bias."""


def _adjacent(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _block(size: int, largest: int) -> int:
    """The power of two that holds ``size``, from 16 (a tensor core's side) up to ``largest``."""
    return min(largest, max(16, 1 << (size - 1).bit_length()))


def _warps(tensor: Tensor, fewest: int) -> int:
    """Full float32 products run outside the tensor cores and need the registers of more warps."""
    wide = tensor.dtype == torch.float32 and dot_precision() == "ieee"
    return 2 * fewest if wide else fewest


def _strides(query: Tensor, key_value: Tensor) -> tuple[int, ...]:
    return (*query.stride()[:3], *key_value.stride()[:4])


def _widen(bias: Tensor) -> Tensor:
    """The bias as the kernels read it, (heads, P, L rounded up) in float32."""
    from vss_kernels.focal_attention import triton_kernels as kernels

    heads, positions, keys = bias.shape
    row_length = cdiv(keys, BLOCK_L) * BLOCK_L
    wide = bias.new_empty(heads, positions, row_length, dtype=torch.float32)
    kernels.widen_bias_kernel[(heads * positions,)](
        bias, wide, keys, row_length, BLOCK_L=512, num_warps=4
    )
    return wide


def attend(query: Tensor, key_value: Tensor, bias: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what queries (B,Q,heads,D) attend to, and statistics (B,heads,windows,2,P)."""
    from vss_kernels.focal_attention import triton_kernels as kernels

    query, key_value, bias = _adjacent(query), _adjacent(key_value), bias.contiguous()
    (batch, _, heads, dim), (_, positions, keys) = query.shape, bias.shape
    windows = table.shape[0]
    out = query.new_empty(query.shape)
    statistics = query.new_empty(batch, heads, windows, 2, positions, dtype=torch.float32)
    block_p = _block(positions, 64)
    tiles_p = cdiv(positions, block_p)
    if out.numel() > 0:
        with device_of(query):
            wide_bias = _widen(bias)
            kernels.attend_kernel[(tiles_p * windows * heads * batch,)](
                query, key_value, wide_bias, table, out, statistics, *_strides(query, key_value),
                dim**-0.5, windows, heads, positions, keys, dim, wide_bias.shape[2], tiles_p,
                BLOCK_P=block_p, BLOCK_L=BLOCK_L, BLOCK_D=_block(dim, LARGEST_DIM),
                PRECISION=dot_precision(), num_warps=_warps(query, 4),
            )  # fmt: skip
    return out, statistics


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key_value: Tensor,
    bias: Tensor,
    out: Tensor,
    statistics: Tensor,
    table: Tensor,
    inverse: InverseTable,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key_value and bias."""
    from vss_kernels.focal_attention import triton_gradient_kernels as kernels

    query, key_value, bias = _adjacent(query), _adjacent(key_value), bias.contiguous()
    grad, out, statistics = grad.contiguous(), out.contiguous(), statistics.contiguous()
    (batch, _, heads, dim), (_, positions, keys) = query.shape, bias.shape
    windows, tokens = table.shape[0], key_value.shape[1]
    grad_query, grad_key_value = query.new_empty(query.shape), query.new_empty(key_value.shape)
    if grad_key_value.numel() == 0:
        return grad_query, grad_key_value, torch.zeros_like(bias)
    delta = query.new_empty(batch, heads, windows, positions, dtype=torch.float32)
    strides = _strides(query, key_value)
    block_p, block_d = _block(positions, 64), _block(dim, LARGEST_DIM)
    tiles_p, tiles_l = cdiv(positions, block_p), cdiv(keys, BLOCK_L)
    scale, precision = dim**-0.5, dot_precision()

    count = batch * windows
    length = max(4, cdiv(count, MOST_PARTS))
    num_parts = cdiv(count, length)
    bias_parts = query.new_empty(num_parts, heads, positions, keys, dtype=torch.float32)
    parts = query.new_empty(inverse.num_parts, batch, heads, 2, TILE, dim, dtype=torch.float32)
    items, sums = inverse.items.shape[0], inverse.sums.shape[0]
    # Half the queries at a time: beside the sums of 64 tokens there are registers for no more.
    token_block_p = _block(positions, 32)
    token_tiles_p = cdiv(positions, token_block_p)
    rows, row_length = inverse.sources.shape[0], token_tiles_p * token_block_p
    transposed_bias = query.new_empty(heads, rows, row_length, dtype=torch.float32)
    tiles_r = cdiv(rows, BLOCK_L)
    with device_of(query):
        wide_bias = _widen(bias)
        kernels.query_gradient_kernel[(tiles_p * windows * heads * batch,)](
            grad, out, query, key_value, wide_bias, table, statistics, delta, grad_query, *strides,
            scale, windows, heads, positions, keys, dim, wide_bias.shape[2], tiles_p,
            BLOCK_P=block_p, BLOCK_L=BLOCK_L, BLOCK_D=block_d, PRECISION=precision,
            num_warps=_warps(query, 4),
        )  # fmt: skip
        kernels.bias_gradient_kernel[(tiles_p * tiles_l * heads * num_parts,)](
            grad, query, key_value, wide_bias, table, statistics, delta, bias_parts, *strides,
            scale, windows, count, length, heads, positions, keys, dim, wide_bias.shape[2],
            tiles_p, tiles_l,
            BLOCK_P=block_p, BLOCK_L=BLOCK_L, BLOCK_D=block_d, PRECISION=precision,
            num_warps=_warps(query, 4),
        )  # fmt: skip
        kernels.transposed_bias_kernel[(tiles_r * heads,)](
            bias, inverse.sources, transposed_bias, rows, positions, keys, row_length, tiles_r,
            BLOCK_R=BLOCK_L, BLOCK_P=block_p, num_warps=4,
        )  # fmt: skip
        kernels.token_gradient_kernel[(items * heads * batch,)](
            grad, query, key_value, transposed_bias, table, statistics, delta, inverse.tokens,
            inverse.windows, inverse.rows, inverse.items, grad_key_value, parts, *strides, scale,
            windows, items, batch, heads, tokens, positions, keys, dim, rows, row_length,
            token_tiles_p, TILE=TILE, BLOCK_P=token_block_p, BLOCK_D=block_d, PRECISION=precision,
            num_warps=_warps(query, 4),
        )  # fmt: skip
        if sums > 0:
            kernels.sum_parts_kernel[(sums * heads * batch,)](
                parts, inverse.tokens, inverse.sums, grad_key_value, sums, batch, heads, tokens,
                dim, TILE=TILE, BLOCK_D=block_d, num_warps=4,
            )  # fmt: skip
    return grad_query, grad_key_value, bias_parts.sum(0).to(bias.dtype)
