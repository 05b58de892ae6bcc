"""Sizes and tokens of MRCFA-B1's relation between target and references, for its operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import DEVICE, DRY_RUN

CHANNELS = (16, 16, 16) if DRY_RUN else (128, 320, 512)  # at 1/8, 1/16 and 1/32
REFERENCES = 3


class Case(NamedTuple):
    """Clips, and the grid of the image at 1/32."""

    clips: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.height * self.width


CASES = {"480x480 B2": Case(2, 15, 15), "480x864 B1": Case(1, 15, 27)}
if DRY_RUN:
    CASES = dict.fromkeys(CASES, Case(1, 2, 3))


def make_tokens(case: Case, scale: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Projected tokens of the target at 1/8, 1/16, 1/32 (scale 0, 1, 2) and of the references.

    Scaled so that affinities are of the order of one.
    """
    channels = CHANNELS[scale]
    positions = case.tokens * 4 ** (2 - scale)
    target = torch.randn(case.clips, positions, channels, device=DEVICE)
    reference = torch.randn(case.clips, REFERENCES, case.tokens, channels, device=DEVICE)
    return (target * channels**-0.25).to(dtype), (reference * channels**-0.25).to(dtype)


def kept(case: Case) -> int:
    """How many tokens of a reference are selected."""
    return case.tokens // 2
