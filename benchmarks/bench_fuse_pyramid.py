"""fuse_pyramid at the sizes of a MiT-B1 head: 480x480 images, and 480x864 video frames."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, DRY_RUN, MODES, ON_GPU
from vss_kernels import fuse_pyramid

CHANNELS = 256
# name: (batch, rows and columns of the first level); each further level has half as many
CASES = {
    "2 at 120x120": (2, (120, 120)),
    "8 at 120x120": (8, (120, 120)),
    "2 at 120x216": (2, (120, 216)),
}
if DRY_RUN:
    CASES = dict.fromkeys(CASES, (1, (8, 16)))
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
LAYOUTS = {"": torch.contiguous_format, " channels last": torch.channels_last}
GRAPHS = ["eager graph", "native graph"] if ON_GPU else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def bench_fuse_pyramid(case, layout, dtype, mode, implementation, measure):
    batch, (rows, columns) = CASES[case]
    levels = [
        torch.randn(batch, CHANNELS, rows >> level, columns >> level, device=DEVICE).to(
            dtype, memory_format=LAYOUTS[layout]
        )
        for level in range(4)
    ]
    measure(
        lambda *tensors: fuse_pyramid(tensors),
        levels,
        operator="fuse_pyramid",
        case=case + layout,
        mode=mode,
        implementation=implementation,
    )
