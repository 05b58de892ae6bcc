"""attend_selected at the sizes of an MRCFA-B1 head."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, DRY_RUN, MODES, ON_GPU
from benchmarks.precisions import PRECISIONS, named, products_in
from vss_kernels import attend_selected

EMBED_DIM = 16 if DRY_RUN else 256
# name: (clips, references, kept tokens, target tokens, reference tokens)
CASES = {"480x480 B2": (2, 3, 112, 3600, 225), "480x864 B1": (1, 3, 202, 6480, 405)}
if DRY_RUN:
    CASES = dict.fromkeys(CASES, (1, 2, 3, 10, 6))
FUSED = ["eager graph", "triton", "triton graph"] if ON_GPU else ["native"]


@pytest.mark.parametrize("implementation", ["eager", "compiled", *FUSED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def bench_attend_selected(case, precision, mode, implementation, measure):
    clips, references, kept, positions, tokens = CASES[case]
    with products_in(precision) as dtype:
        # The refinement ends in a ReLU, so affinities are not negative.
        affinity = torch.randn(clips, references, kept, positions, device=DEVICE).relu().to(dtype)
        value = torch.randn(clips, references, tokens, EMBED_DIM, device=DEVICE).to(dtype)
        scores = torch.rand(clips, references, tokens, device=DEVICE)
        index = scores.argsort(-1)[..., :kept].sort(-1).values
        measure(
            lambda affinity, value: attend_selected(affinity, value, index),
            (affinity, value),
            operator="attend_selected",
            case=named(case, precision),
            mode=mode,
            implementation=implementation,
            flops=2 * affinity.numel() * EMBED_DIM,
        )
