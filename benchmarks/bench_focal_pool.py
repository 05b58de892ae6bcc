"""focal_pool at the sizes of a CFFM-B1 head on 480x480 clips, two at a time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, DRY_RUN, MODES, ON_GPU
from vss_kernels import focal_pool

# name: (batch, height, width, channels, side of the sub-window, cells)
CASES = {
    "level 1": (2, 63, 63, 256, 7, (9, 9)),
    "level 2": (2, 63, 63, 256, 3, (18, 18)),
    "level 3": (2, 63, 63, 256, 2, (27, 27)),
}
if DRY_RUN:
    CASES = {name: (1, 7, 7, 8, side, (1, 2)) for name, (*_, side, _) in CASES.items()}
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
GRAPHS = ["eager graph", "native graph"] if ON_GPU else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def bench_focal_pool(case, dtype, mode, implementation, measure):
    batch, height, width, channels, side, cells = CASES[case]
    inputs = (
        torch.randn(batch, height, width, channels, device=DEVICE, dtype=dtype),
        torch.randn(side * side, device=DEVICE, dtype=dtype),
        torch.randn((), device=DEVICE, dtype=dtype),
    )
    measure(
        lambda *tensors: focal_pool(*tensors, cells),
        inputs,
        operator="focal_pool",
        case=case,
        mode=mode,
        implementation=implementation,
    )
