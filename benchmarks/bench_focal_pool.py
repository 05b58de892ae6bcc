"""focal_pool at the sizes of a CFFM-B1 head on 480x480 clips, two at a time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, MODES
from vss_kernels import focal_pool

# name: (batch, height, width, channels, side of the sub-window, cells)
CASES = {
    "level 1": (2, 63, 63, 256, 7, (9, 9)),
    "level 2": (2, 63, 63, 256, 3, (18, 18)),
    "level 3": (2, 63, 63, 256, 2, (27, 27)),
}
GRAPHS = ["eager graph", "native graph"] if DEVICE == "cuda" else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def bench_focal_pool(case, mode, implementation, measure):
    batch, height, width, channels, side, cells = CASES[case]
    inputs = (
        torch.randn(batch, height, width, channels, device=DEVICE),
        torch.randn(side * side, device=DEVICE),
        torch.randn((), device=DEVICE),
    )
    measure(
        lambda *tensors: focal_pool(*tensors, cells),
        inputs,
        operator="focal_pool",
        case=case,
        mode=mode,
        implementation=implementation,
    )
