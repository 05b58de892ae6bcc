"""What a recorded call leaves behind, found in a process in which nothing has run before.

A table or cache that is built while a CUDA graph is recorded lies in the memory of that graph: the
next recording overwrites it. ``python -m tests.support.capture_audit NAME MODE`` trains or streams
for a few steps, recording as on a GPU but for the GPU, and lists the tensors that recordings left.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.support.recorded_calls import RecordedCalls
from vss_models.inference.graphs import Recording


class AuditedCapture(RecordedCalls):
    """Records calls and notes what outlives them beside their results.

    Attributes:
        left: Shapes and dtypes of the tensors that recordings left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []

    def __call__(self, call: Callable[[], Any]) -> Recording:
        """Records a call."""
        before = _living_tensors()
        recording = super().__call__(call)
        known = {id(tensor) for tensor in (*before, *pytree.tree_leaves(recording.result))}
        self.left += [
            f"{tuple(tensor.shape)} {tensor.dtype}"
            for tensor in _living_tensors()
            if id(tensor) not in known
        ]
        return recording


def _living_tensors() -> list[Tensor]:
    gc.collect()
    return [entry for entry in gc.get_objects() if issubclass(type(entry), Tensor)]


def audit_streaming(name: str) -> AuditedCapture:
    """Streams until frames with references have been recorded and replayed."""
    from tests.support.tiny_streaming import TRANSFORM, tiny_model, video
    from vss_models.inference.frame_program import FrameProgram
    from vss_models.inference.streaming import StreamingSegmenter

    model, capture = tiny_model(name), AuditedCapture()
    stream = StreamingSegmenter(model, transform=TRANSFORM)
    stream._program = FrameProgram(model, TRANSFORM, 9, capture=capture)
    for frame in video(7, 48, 85):
        stream.step(frame)
    return capture


def audit_training(name: str) -> AuditedCapture:
    """Trains until a step has been recorded and replayed."""
    from tests.support.tiny_training import NUM_CLASSES, make_module
    from vss_models.training.optim import OptimizerSettings, build_optimizer
    from vss_models.training.step import TrainingStep

    module, capture = make_module(name).train(), AuditedCapture()
    optimizer, schedule = build_optimizer(module.model, OptimizerSettings(), 4)
    optimizer.capture = capture
    step = TrainingStep(module.model, module.loss, capture=capture)
    clip, labels = torch.randn(1, 4, 3, 64, 64), torch.randint(NUM_CLASSES, (1, 4, 64, 64))
    for _ in range(4):
        step(clip, labels.to(torch.uint8))
        optimizer.step()
        schedule.step()
    return capture


def main() -> None:
    """Prints numbers of recordings and replays, and what was left, as JSON."""
    name, mode = sys.argv[1:]
    capture = {"streaming": audit_streaming, "training": audit_training}[mode](name)
    print(json.dumps([capture.recorded, capture.replayed, capture.left]))


if __name__ == "__main__":
    main()
