"""Affinity of kept tokens in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.token_rows import gather_tokens


def masked_affinity(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    """Affinity of the kept reference tokens, one map over the target per token."""
    rows = gather_tokens(reference, index).flatten(1, 2)  # (B, R*S, C)
    affinity = rows @ target.mT  # (B, R*S, Q)
    return affinity.unflatten(1, index.shape[1:])  # (B, R, S, Q)
