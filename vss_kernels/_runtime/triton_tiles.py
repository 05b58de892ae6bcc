"""Loads, stores and products of tiles common to the Triton kernels.

All tensors are contiguous. A frame is one reference frame of one clip, clip-major, so frame f
belongs to clip f // R. Sizes are ordinary arguments, so that one compiled kernel serves every size;
offsets are 64-bit. docs/relation.md derives the tiling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime import triton_support

INTERPRETED = tl.constexpr(triton_support.INTERPRETED)


@triton.jit
def round_to_tf32(x):
    """The nearest number of TF32, which has 10 bits behind the leading one; ties away from zero.

    The tensor cores of Hopper cut the bits behind those off, which makes products two to three
    times as wrong as rounding does.
    """
    if INTERPRETED:  # where there is no assembler
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def multiply(left, right, sums, PRECISION: tl.constexpr):
    """The product of two tiles, added to ``sums`` unless that is None.

    Args:
        left: [rows, inner] in any dtype.
        right: [inner, columns] in the same dtype.
        sums: [rows, columns] in float32, or None.
        PRECISION: How products of float32 tiles may round, "tf32" or "ieee".
    """
    if PRECISION == "tf32" and left.dtype == tl.float32:
        left, right = round_to_tf32(left), round_to_tf32(right)
    return tl.dot(left, right, sums, input_precision=PRECISION)


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
