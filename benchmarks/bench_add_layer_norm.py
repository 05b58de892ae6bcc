"""add_layer_norm at the sizes of MiT-B1 on two clips of four frames of 480x480."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, DRY_RUN, MODES, ON_GPU
from benchmarks.smallest import both_results_of_add_layer_norm

# name: (frames, tokens, channels)
CASES = {"stage 1": (8, 14400, 64), "stage 3": (8, 900, 320)}
if DRY_RUN:
    CASES = dict.fromkeys(CASES, (1, 16, 16))
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
GPU = ["eager graph", "triton", "triton graph"] if ON_GPU else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", *GPU])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def bench_add_layer_norm(case, dtype, mode, implementation, measure):
    frames, tokens, channels = CASES[case]
    x, branch = (torch.randn(frames, tokens, channels, device=DEVICE) for _ in range(2))
    weight, bias = (torch.randn(channels, device=DEVICE) for _ in range(2))
    measure(
        both_results_of_add_layer_norm,
        tuple(tensor.to(dtype) for tensor in (x, weight, bias, branch)),
        operator="add_layer_norm",
        case=case,
        mode=mode,
        implementation=implementation,
    )
