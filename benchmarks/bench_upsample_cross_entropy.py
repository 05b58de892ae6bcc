"""The loss of a VSPW training step and the labels of a VSPW frame, from logits of quarter size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.harness import DEVICE, MODES, implementation_of
from vss_kernels import upsample_argmax, upsample_cross_entropy

CLASSES = 124
# On a GPU the maps of two clips with four frames and four decoders each; on a CPU fewer.
MAPS = 16 if DEVICE == "cuda" else 2
# name: (size, through) of the labels of one frame, from logits of 120 x 216
FRAMES = {
    "one resize": ((480, 864), None),
    "two resizes": ((480, 853), (480, 864)),
}
GRAPHS = ["eager graph", "native graph"] if DEVICE == "cuda" else []
IMPLEMENTATIONS = ["eager", "compiled", "native", *GRAPHS]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", MODES)
def bench_upsample_cross_entropy(mode, implementation, measure):
    logits = torch.randn(MAPS, CLASSES, 120, 120, device=DEVICE)
    labels = torch.randint(CLASSES, (MAPS, 480, 480), dtype=torch.uint8, device=DEVICE)
    labels[:, :40] = 255
    measure(
        lambda tensor: upsample_cross_entropy(tensor, labels.to(tensor.device)),
        (logits,),
        operator="upsample_cross_entropy",
        case=f"{MAPS} maps {CLASSES}x120x120 to 480x480",
        mode=mode,
        implementation=implementation,
    )


def upsampled(logits, size, through):
    for step in (size,) if through is None else (through, size):
        logits = F.interpolate(logits, size=step, mode="bilinear")
    return logits


def check_classes(logits, size, through):
    """Asserts that the chosen logits are the largest but for what eager's own rounding changes."""
    classes = upsample_argmax(logits, size, through)
    exact = upsampled(logits.double(), size, through)
    rounding = (upsampled(logits, size, through) - exact).abs().max()
    chosen = exact.gather(1, classes.long()[:, None])[:, 0]
    assert (exact.amax(1) - chosen).max() <= 2 * rounding


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FRAMES)
def bench_upsample_argmax(case, implementation, measure):
    size, through = FRAMES[case]
    logits = torch.randn(1, CLASSES, 120, 216, device=DEVICE)
    with implementation_of(("upsample_argmax",), implementation):
        check_classes(logits, size, through)
    measure(
        lambda tensor: upsample_argmax(tensor, size, through),
        (logits,),
        operator="upsample_argmax",
        case=f"{CLASSES}x120x216, {case}",
        mode="forward",
        implementation=implementation,
        check=False,
    )
