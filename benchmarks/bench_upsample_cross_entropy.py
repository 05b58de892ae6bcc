"""The loss of a VSPW training step, from logits of quarter size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, DRY_RUN, MODES, ON_GPU, on_machine
from vss_kernels import upsample_cross_entropy

CLASSES = 124
# On a GPU the maps of two clips with four frames and four decoders each; on a CPU fewer.
MAPS = on_machine(gpu=16, cpu=2, dry_run=1)
SIDE = 4 if DRY_RUN else 120
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
GRAPHS = ["eager graph", "native graph"] if ON_GPU else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_upsample_cross_entropy(dtype, mode, implementation, measure):
    logits = torch.randn(MAPS, CLASSES, SIDE, SIDE, device=DEVICE, dtype=dtype)
    labels = torch.randint(CLASSES, (MAPS, 4 * SIDE, 4 * SIDE), dtype=torch.uint8, device=DEVICE)
    labels[:, : SIDE // 3] = 255
    measure(
        lambda tensor: upsample_cross_entropy(
            tensor, labels.to(tensor.device), ignore_index=255, reduction="mean_all"
        ),
        (logits,),
        operator="upsample_cross_entropy",
        case=f"{MAPS} maps {CLASSES}x{SIDE}x{SIDE} to {4 * SIDE}x{4 * SIDE}",
        mode=mode,
        implementation=implementation,
    )
