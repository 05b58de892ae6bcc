"""Attention of the target over the kept reference tokens in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels._runtime.token_rows import gather_tokens


def attend_selected(affinity: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """Softmax over the kept tokens of each reference frame, applied to their values."""
    wide = accumulation_dtype(affinity.dtype)
    probability = affinity.softmax(dim=2, dtype=wide).to(value.dtype)  # (B, R, S, Q)
    rows = gather_tokens(value, index)  # (B, R, S, E)
    return probability.mT @ rows  # (B, R, Q, E)
