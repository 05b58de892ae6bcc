"""How many kernels a training step and a frame of a video launch on a GPU, by tracing."""

from __future__ import annotations

import pytest
import torch

from tests.support.kernel_count import KernelCounter, traced
from tests.support.recorded_calls import RecordedCalls
from vss_kernels._runtime import native
from vss_models import ClipLoss, create_model
from vss_models.data import EvaluationTransform
from vss_models.inference.frame_program import FrameProgram, LabelSize
from vss_models.training.optim import OptimizerSettings, build_optimizer
from vss_models.training.step import TrainingStep


def step_kernels(name: str) -> KernelCounter:
    """Counts the kernels of a whole step with two clips of 4 frames, 480x480, in bfloat16."""
    with traced() as counter:
        with torch.autocast("cpu", enabled=False):
            model = create_model(name, 124).train()
            clip = torch.empty(2, 4, 3, 480, 480)
            labels = torch.empty(2, 4, 480, 480, dtype=torch.uint8)
            optimizer, _ = build_optimizer(model, OptimizerSettings(), 10)
        step = TrainingStep(model, ClipLoss())
        step(clip, labels)  # makes the buffer of gradients
        optimizer.step()  # and this its moments
        counter.kernels.clear()
        step(clip, labels)
        optimizer.step()
    return counter


@pytest.mark.parametrize(("name", "most"), [("mrcfa_b1", 653), ("cffm_b1", 694)])
def test_a_training_step_launches_few_kernels(name: str, most: int) -> None:
    counter = step_kernels(name)
    assert counter.kernels["vss_kernels.add_layer_norm.default"] > 0  # the GPU's operators ran
    assert counter.kernels["_fused_adamw_.default"] > 0
    if native.problem() is None:
        assert counter.kernels["vss_kernels.depthwise_gelu_backward.default"] == 2 * 8
    assert counter.total <= most, counter.kernels.most_common()


def frame_kernels(name: str, precision: str) -> KernelCounter:
    """Counts the kernels of one recorded frame, 480x853, from its bytes to its labels."""
    with traced(half=False) as counter:
        model = create_model(name, 124).eval()
        program = FrameProgram(model, EvaluationTransform(), 9, precision, capture=RecordedCalls())
        size = LabelSize((480, 853), (480, 864))
        program(torch.empty(1, 480, 853, 3, dtype=torch.uint8), [0], size)  # makes the ring
        counter.kernels.clear()
        video = program._video
        assert video.upload is not None
        with torch.no_grad(), program.autocast():
            program._run_related(video, size, video.upload.frames, video.upload.places)
    return counter


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "most"), [("mrcfa_b1", 158), ("cffm_b1", 169)])
def test_a_frame_of_a_video_launches_few_kernels(name: str, most: int, precision: str) -> None:
    counter = frame_kernels(name, precision)
    assert counter.kernels["vss_kernels.add_layer_norm.default"] > 0  # the GPU's operators ran
    assert counter.kernels["vss_kernels.upsample_argmax.default"] == 1
    assert counter.kernels["index_copy_.default"] > 0
    assert counter.total <= most, counter.kernels.most_common()


def test_what_is_counted() -> None:
    with traced(half=False) as counter:
        x = torch.empty(4, 6, requires_grad=True)
        weight = torch.empty(5, 6)
        y = torch.nn.functional.linear(x, weight, torch.empty(5))
        assert counter.total == 1
        y.view(20).expand(3, 20).t()
        assert counter.total == 1
        y.relu().sum().backward()
    assert counter.kernels["mm.default"] == 1
    assert counter.total == 1 + 2 + 3  # relu and sum; ones, the gradient of relu, the product
