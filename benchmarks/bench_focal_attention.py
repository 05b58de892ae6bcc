"""focal_attention at the sizes of a CFFM-B1 head: eight heads of 32 channels."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, MODES
from vss_kernels import FocalGeometry
from vss_kernels.focal.attention import attend_tokens
from vss_kernels.focal.attention.tables import num_tokens

HEADS, HEAD_DIM = 8, 32
# name: (clips, rows and columns of windows): the 1/8 map, padded to whole windows
CASES = {"480x480 B1": (1, (9, 9)), "480x480 B2": (2, (9, 9)), "480x864 B1": (1, (9, 16))}
FUSED = ["eager graph", "triton", "triton graph"] if DEVICE == "cuda" else ["native"]


@pytest.mark.parametrize("implementation", ["eager", "compiled", *FUSED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def bench_focal_attention(case, dtype, mode, implementation, measure):
    clips, grid = CASES[case]
    geometry = FocalGeometry()
    side = geometry.window
    inputs = (
        torch.randn(clips, grid[0] * side, grid[1] * side, HEADS, HEAD_DIM),
        torch.randn(clips, num_tokens(geometry, grid), 2, HEADS, HEAD_DIM),
        torch.randn(HEADS, side**2, geometry.num_keys),
    )
    measure(
        lambda *tensors: attend_tokens(*tensors, geometry),
        tuple(tensor.to(DEVICE, dtype) for tensor in inputs),
        operator="focal_attention",
        case=case,
        mode=mode,
        implementation=implementation,
    )
