"""Tokens and positions for the tests of select_tokens, masked_affinity and attend_selected."""

from __future__ import annotations

import torch
from torch import Tensor


def make_tokens(
    clips, references, positions, tokens, channels, dtype=torch.float32, device="cpu"
) -> tuple[Tensor, Tensor]:
    """Tokens of the target (B, Q, C) and of the references (B, R, N, C)."""
    target = torch.randn(clips, positions, channels).to(device, dtype)
    reference = torch.randn(clips, references, tokens, channels).to(device, dtype)
    return target, reference


def make_index(clips, references, tokens, selected, device="cpu") -> Tensor:
    """Positions of ``selected`` different tokens (B, R, S), in any order."""
    return torch.rand(clips, references, tokens).argsort(-1)[..., :selected].to(device)
