"""What a recorded call leaves behind, found in a process in which nothing has run before.

A table or cache that is built while a CUDA graph is recorded lies in the memory of that graph: the
next recording overwrites it. ``python -m tests.support.capture_audit NAME MODE HOW`` trains or
streams for a few steps and lists the tensors that recordings left. HOW is "plain" or "inductor",
recorded as on a GPU but for the GPU, or "cuda-graph", on one.
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
from vss_models.inference.compile import CUDA_GRAPH
from vss_models.inference.graphs import Capture, CudaCapture, Recording

PLAIN = "plain"


class AuditedCapture:
    """Records calls and notes what outlives them beside their results.

    Args:
        capture: Records them.

    Attributes:
        left: Shapes and dtypes of the tensors that recordings left.
        recorded: Number of calls recorded.
        replayed: Number of replays.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.left: list[str] = []
        self.recorded = self.replayed = 0

    def __call__(self, call: Callable[[], Any]) -> Recording:
        """Records a call."""
        before = _living_tensors()
        recording = self.capture(call)
        self.recorded += 1
        known = {id(tensor) for tensor in (*before, *pytree.tree_leaves(recording.result))}
        self.left += [
            f"{tuple(tensor.shape)} {tensor.dtype}"
            for tensor in _living_tensors()
            if id(tensor) not in known
        ]

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return Recording(replay, recording.result)


def _living_tensors() -> list[Tensor]:
    gc.collect()
    return [entry for entry in gc.get_objects() if issubclass(type(entry), Tensor)]


def audit_streaming(name: str, how: str) -> AuditedCapture:
    """Streams until frames with references have been recorded and replayed."""
    from tests.support.tiny_streaming import TRANSFORM, tiny_model, video
    from vss_models.inference.frame_program import FrameProgram
    from vss_models.inference.streaming import StreamingSegmenter

    model, capture = tiny_model(name).to(_device(how)), _capture(how)
    stream = StreamingSegmenter(model, transform=TRANSFORM)
    places = 9 if model.num_references else 0
    stream._program = FrameProgram(
        model, TRANSFORM, places, compile=None if how == PLAIN else how, capture=capture
    )
    for frame in video(7, 48, 85):
        stream.step(frame)
    return capture


def audit_training(name: str, how: str) -> AuditedCapture:
    """Trains until a step has been recorded and replayed."""
    from tests.support.tiny_training import NUM_CLASSES, make_module
    from vss_models.training.optim import OptimizerSettings, build_optimizer
    from vss_models.training.step import TrainingStep

    device, capture = _device(how), _capture(how)
    module = make_module(name).train().to(device)
    optimizer, schedule = build_optimizer(module.model, OptimizerSettings(), 4)
    optimizer.capture = capture
    step = TrainingStep(module.model, module.loss, None if how == PLAIN else how, capture)
    clip = torch.randn(1, 4, 3, 64, 64, device=device)
    labels = torch.randint(NUM_CLASSES, (1, 4, 64, 64), device=device, dtype=torch.uint8)
    for _ in range(4):
        step(clip, labels)
        optimizer.step()
        schedule.step()
    return capture


def _device(how: str) -> str:
    return "cuda" if how == CUDA_GRAPH else "cpu"


def _capture(how: str) -> AuditedCapture:
    return AuditedCapture(CudaCapture() if how == CUDA_GRAPH else RecordedCalls())


def main() -> None:
    """Prints numbers of recordings and replays, and what was left, as JSON."""
    name, mode, how = sys.argv[1:]
    capture = {"streaming": audit_streaming, "training": audit_training}[mode](name, how)
    print(json.dumps([capture.recorded, capture.replayed, capture.left]))


if __name__ == "__main__":
    main()
