"""Rows of kept tokens: gathered from a frame, and their gradients put back."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.triton_support import cdiv


def split_positions(positions: int, programs: int, shortest: int = 256) -> tuple[int, int]:
    """Into how many parts to split a pass over positions, and the length of one.

    Parts are about ``shortest`` long or longer, and no more than fill a GPU. The split depends on
    sizes alone, not on the GPU, so that a result can be reproduced on another one.
    """
    wanted = max(1, min(cdiv(positions, shortest), 16, 1024 // max(1, programs)))
    length = max(32, cdiv(positions, 32 * wanted) * 32)
    return max(1, cdiv(positions, length)), length


def place_rows(rows: Tensor, index: Tensor, out: Tensor) -> None:
    """Writes the sum of ``rows`` (parts,B,R,S,C) to ``out`` (B,R,N,C) at ``index``, else zero."""
    from vss_kernels._runtime.triton_token_rows import place_rows_kernel

    parts, batch, frames, selected, channels = rows.shape
    tokens = out.shape[2]
    tiles_n, tiles_c = cdiv(tokens, 16), cdiv(channels, 64)
    place_rows_kernel[(batch * frames * tiles_n * tiles_c,)](
        rows, index, out, channels, selected, tokens, parts, batch * frames, tiles_n, tiles_c,
        BLOCK_S=128, BLOCK_N=16, BLOCK_C=64,
    )  # fmt: skip


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Takes the rows ``index`` (B,R,S) of ``tokens`` (B,R,N,C); returns (B,R,S,C)."""
    rows = index.unsqueeze(-1).expand(-1, -1, -1, tokens.shape[-1])
    return tokens.gather(2, rows)
