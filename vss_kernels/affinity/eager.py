"""Token selection and masked affinity in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels.precision import accumulation_dtype


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Takes the rows ``index`` (B,R,S) of ``tokens`` (B,R,N,C); returns (B,R,S,C)."""
    rows = index.unsqueeze(-1).expand(-1, -1, -1, tokens.shape[-1])
    return tokens.gather(2, rows)


def select_tokens(target: Tensor, reference: Tensor, num_selected: int, top: int) -> Tensor:
    """The tokens of each reference frame with the largest sums of their strongest affinities.

    Half-precision tokens are multiplied in float32: a choice cannot be rounded afterwards, so the
    products must not be rounded before it.
    """
    wide = accumulation_dtype(target.dtype)
    target, reference = target.detach().to(wide), reference.detach().to(wide)
    batch, frames, tokens, channels = reference.shape
    affinity = reference.reshape(batch, frames * tokens, channels) @ target.mT  # (B, R*N, Q)
    scores = affinity.topk(top, dim=-1).values.sum(-1).view(batch, frames, tokens)  # (B, R, N)
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    ranking = scores.sort(dim=-1, descending=True, stable=True).indices  # (B, R, N)
    return ranking[..., :num_selected].sort(dim=-1).values  # (B, R, S)


def masked_affinity(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    """Affinity of the kept reference tokens, one map over the target per token."""
    rows = gather_tokens(reference, index).flatten(1, 2)  # (B, R*S, C)
    affinity = rows @ target.mT  # (B, R*S, Q)
    return affinity.unflatten(1, index.shape[1:])  # (B, R, S, Q)
