"""The loss of a VSPW training step, from logits of quarter size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, MODES
from vss_kernels import upsample_cross_entropy

CLASSES = 124
# On a GPU the maps of two clips with four frames and four decoders each; on a CPU fewer.
MAPS = 16 if DEVICE == "cuda" else 2
GRAPHS = ["eager graph", "native graph"] if DEVICE == "cuda" else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
def bench_upsample_cross_entropy(mode, implementation, measure):
    logits = torch.randn(MAPS, CLASSES, 120, 120, device=DEVICE)
    labels = torch.randint(CLASSES, (MAPS, 480, 480), dtype=torch.uint8, device=DEVICE)
    labels[:, :40] = 255
    measure(
        lambda tensor: upsample_cross_entropy(
            tensor, labels.to(tensor.device), ignore_index=255, reduction="mean_all"
        ),
        (logits,),
        operator="upsample_cross_entropy",
        case=f"{MAPS} maps {CLASSES}x120x120 to 480x480",
        mode=mode,
        implementation=implementation,
    )
