"""Token selection in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.precision import accumulation_dtype


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
