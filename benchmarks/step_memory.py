"""Peak memory of a training step at the published sizes, by tracing: no GPU and no hour is needed.

``python -m benchmarks.step_memory`` prints a table in MiB: activations, gradients and what is there
in between, without weights and the optimizer's moments. "eager" is the published programs'
arithmetic, as in :mod:`benchmarks.bench_training`.
"""

from __future__ import annotations

import torch

import vss_kernels
from tests.support.kernel_count import traced
from tests.support.memory import MIB
from tests.support.traced_memory import MemoryCounter
from vss_models import ClipLoss, create_model
from vss_models.training.step import TrainingStep

CLASSES = 124
MODELS = ("mrcfa_b1", "cffm_b1")


def step_memory(name: str, fused: bool, half: bool, clips: int = 2, side: int = 480) -> float:
    """Traces a training step.

    Args:
        name: The model's.
        fused: Whether to run what runs by default on a GPU, or the eager definitions.
        half: Whether in bfloat16 under autocast, or in float32.
        clips: Clips of 4 frames.
        side: Height and width of a frame.

    Returns:
        The peak of what the step holds, in MiB.
    """
    with traced(half=half), MemoryCounter() as counter:
        with torch.autocast("cpu", enabled=False):
            fusion = "projected" if fused else "concatenate"
            model = create_model(name, CLASSES, fusion=fusion).train()
            clip = torch.empty(clips, 4, 3, side, side)
            labels = torch.empty(clips, 4, side, side, dtype=torch.uint8)
        before = counter.peak = counter.living
        if fused:
            TrainingStep(model, ClipLoss())(clip, labels)
        else:
            with vss_kernels.backend("eager"):
                loss = ClipLoss()(model(clip), labels)
                with torch.autocast("cpu", enabled=False):
                    loss.backward()
        return (counter.peak - before) / MIB


def main() -> None:
    """Prints the table."""
    print("| | float32: eager | fused | | bfloat16: eager | fused | |")
    print("|---|---|---|---|---|---|---|")
    for name in MODELS:
        cells = []
        for half in (False, True):
            eager, fused = (step_memory(name, choice, half) for choice in (False, True))
            cells += [f"{eager:.0f}", f"{fused:.0f}", f"{100 * fused / eager:.0f} %"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
