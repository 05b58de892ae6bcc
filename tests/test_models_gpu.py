"""Whole models on a GPU, on the operators chosen there: accuracy, and capture in one graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.golden_io import load
from tests.support.golden_models import build, clip_and_labels
from tests.support.precision import SLACK, error
from tests.support.repeats import captured
from vss_models import ClipLoss, VideoSegmentor

pytestmark = pytest.mark.gpu
NAMES = pytest.mark.parametrize("name", ["mrcfa_b1_96x160", "cffm_depth2_96x160"])


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of float32 numbers in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def step(model: VideoSegmentor, clip: Tensor, labels: Tensor) -> list[Tensor]:
    """Logits, loss and gradients of a training step."""
    model.train()
    logits = model(clip)
    loss = ClipLoss()(logits, labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [*(part.detach() for part in logits), loss.detach(), *gradients]


@NAMES
def test_as_accurate_as_eager(name: str, tmp_path: Path) -> None:
    golden = load(name)
    clip, labels = clip_and_labels(golden)
    with vss_kernels.backend("eager"):
        exact = step(build(golden, tmp_path).double(), clip.double(), labels)
        plain = step(build(golden, tmp_path).cuda(), clip.cuda(), labels.cuda())
    fused = step(build(golden, tmp_path).cuda(), clip.cuda(), labels.cuda())
    largest = max(float(gradient.abs().max()) for gradient in exact[3:])
    for want, eager, have in zip(exact, plain, fused, strict=True):
        if float(want.abs().max()) < 1e-6 * largest:
            continue  # a gradient that is zero but for rounding
        assert error(have, want) <= 2 * error(eager, want) + 5 * SLACK[torch.float32]


@NAMES
@pytest.mark.parametrize("mode", ["evaluation", "training step"])
def test_model_is_captured_in_one_graph(mode: str, name: str, tmp_path: Path) -> None:
    """From the clip to the logits, or through loss and backward; replayed on other frames."""
    golden = load(name)
    clip, labels = (tensor.cuda() for tensor in clip_and_labels(golden))
    model = build(golden, tmp_path).cuda().eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.0  # a step then leaves the statistics as they are
    other = clip.flip(-1).contiguous()

    def run() -> list[Tensor]:
        if mode == "training step":
            return step(model, clip, labels)
        with torch.no_grad():
            return [model(clip)]

    graph, results = captured(run)
    clip.copy_(other)
    graph.replay()
    replayed = [tensor.clone() for tensor in results]
    for have, want in zip(replayed, run(), strict=True):
        assert (have - want).abs().max() <= 1e-5 * want.abs().max() + 1e-9
