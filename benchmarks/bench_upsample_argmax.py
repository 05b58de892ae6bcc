"""The labels of a VSPW frame, from logits of quarter size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.harness import DEVICE, DRY_RUN, ON_GPU, implementation_of
from vss_kernels import upsample_argmax

CLASSES = 124
# name: (size, through) of the labels of one frame, from logits of 120 x 216
FRAMES = {
    "one resize": ((480, 864), None),
    "two resizes": ((480, 853), (480, 864)),
}
FRAME_SIZE = (120, 216)
if DRY_RUN:
    FRAMES = {"one resize": ((8, 16), None), "two resizes": ((8, 15), (8, 16))}
    FRAME_SIZE = (2, 4)
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
GRAPHS = ["eager graph", "native graph"] if ON_GPU else []


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


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FRAMES)
def bench_upsample_argmax(case, dtype, implementation, measure):
    size, through = FRAMES[case]
    logits = torch.randn(1, CLASSES, *FRAME_SIZE, device=DEVICE, dtype=dtype)
    with implementation_of(("upsample_argmax",), implementation):
        check_classes(logits, size, through)
    measure(
        lambda tensor: upsample_argmax(tensor, size, through),
        (logits,),
        operator="upsample_argmax",
        case=f"{CLASSES}x{FRAME_SIZE[0]}x{FRAME_SIZE[1]}, {case}",
        mode="forward",
        implementation=implementation,
        check=False,
    )
