"""depthwise_gelu at the sizes of MiT-B0 and B1: levels of 480x480 images and of one of 480x853."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, MODES, ON_GPU, on_machine
from vss_kernels import depthwise_gelu

SIZES = {"480x480": (120, 120), "480x853": (120, 214)}
HIDDEN = {"B0": (128, 256, 640, 1024), "B1": (256, 512, 1280, 2048)}
LEVELS = [(variant, size, level) for variant in HIDDEN for size in SIZES for level in range(4)]


def _shape(variant: str, size: str, level: int, images: int) -> tuple[int, ...]:
    sides = tuple(-(-side // 2**level) for side in SIZES[size])
    return (1 if size == "480x853" else images, *sides, HIDDEN[variant][level])


def _cases(images: int) -> dict[str, tuple[int, ...]]:
    """Shapes of maps (batch, height, width, channels), the largest of MiT-B1 first."""
    return {
        f"{variant}, {size}, level {level + 1}": _shape(variant, size, level, images)
        for variant, size, level in sorted(LEVELS, key=lambda case: case != ("B1", "480x480", 0))
    }


# Two clips of 4 frames on a GPU, two images on a CPU.
CASES = on_machine(
    gpu=_cases(images=8),
    cpu=_cases(images=2),
    dry_run=dict.fromkeys(_cases(images=1), (1, 3, 4, 8)),
)
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
GRAPHS = ["eager graph", "native graph"] if ON_GPU else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def bench_depthwise_gelu(case, dtype, mode, implementation, measure):
    shape = CASES[case]
    channels = shape[-1]
    inputs = (
        torch.randn(shape, device=DEVICE, dtype=dtype),
        torch.randn(channels, 1, 3, 3, device=DEVICE, dtype=dtype) / 3,
        torch.randn(channels, device=DEVICE, dtype=dtype),
    )
    measure(
        depthwise_gelu,
        inputs,
        operator="depthwise_gelu",
        case=case,
        mode=mode,
        implementation=implementation,
    )
