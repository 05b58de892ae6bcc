"""Training steps compiled in one piece: the numbers of the plain ones, for both models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.tiny_training import NUM_CLASSES, make_data, make_dataset, make_module, run
from vss_models.backbones.mit import DropPath
from vss_models.checkpoints import load_model
from vss_models.training import SegmentationModule

NAMES = ["mrcfa_b0", "cffm_b0"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def without_dropout(module: SegmentationModule) -> SegmentationModule:
    """Compiled code may draw other random numbers."""
    for part in module.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.rate = 0.0
    return module


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (torch.randn(2, 4, 3, 64, 96), torch.randint(NUM_CLASSES, (2, 4, 64, 96)).to(torch.uint8))
        for _ in range(2)
    ]


def losses_and_gradients(module: SegmentationModule, data) -> list[torch.Tensor]:
    """The losses of a few steps and the gradients they add up to."""
    module.train()
    losses = []
    for clip, labels in data:
        _, loss = module._forward(clip, labels)
        loss.backward()
        losses.append(loss.detach())
    return [*losses, *(parameter.grad for parameter in module.model.parameters())]


def assert_close(have: list[torch.Tensor], want: list[torch.Tensor], allowed: float) -> None:
    """Some gradients are zero but for rounding, so the largest of all counts a little too."""
    largest = max(float(tensor.abs().max()) for tensor in want)
    for one, other in zip(have, want, strict=True):
        scale = float(other.abs().max()) + 1e-3 * largest
        assert (one - other).abs().max() <= allowed * scale


@pytest.mark.parametrize("name", NAMES)
def test_compiled_step_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph without a break, through forward, loss and backward."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_with = torch.compile

    def compile_and_count(function, **settings):  # type: ignore[no-untyped-def]
        assert settings["fullgraph"]
        return compile_with(function, **{**settings, "backend": counter})

    monkeypatch.setattr(torch, "compile", compile_and_count)
    plain = without_dropout(make_module(name))
    fast = without_dropout(make_module(name, compile="aot_eager"))
    data = batches()
    expected = losses_and_gradients(plain, data)
    assert_close(losses_and_gradients(fast, data), expected, 1e-5)
    assert counter.frame_count == 1
    assert set(plain.state_dict()) == set(fast.state_dict())


def test_a_compiled_run_trains(tmp_path: Path) -> None:
    """What it writes is an ordinary checkpoint."""
    module = make_module("mrcfa_b0", compile="aot_eager")
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = make_data(make_dataset(tmp_path / "set"))
    model = load_model(run(module, data, tmp_path / "run", 2))
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(
        not torch.equal(after[name], before[name])
        for name, _ in model.head.named_parameters("head")
    )


def test_what_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compile must be None.*inductor.*, got 'fast'"):
        make_module(compile="fast")
    data = make_data(make_dataset(tmp_path / "set"))
    with pytest.raises(ValueError, match="needs a CUDA device, got cpu; use 'inductor'"):
        run(make_module(compile="cuda-graph"), data, tmp_path / "run", 1)


@pytest.mark.gpu
def test_replays_cannot_accumulate(tmp_path: Path) -> None:
    data = make_data(make_dataset(tmp_path / "set"))
    with pytest.raises(ValueError, match="cannot accumulate gradients"):
        run(
            make_module(compile="cuda-graph"),
            data,
            tmp_path / "run",
            1,
            accelerator="gpu",
            accumulate_grad_batches=2,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["inductor", "cuda-graph"])
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name: str, how: str) -> None:
    """The gradients of one batch do not change with those of the next."""
    plain = without_dropout(make_module(name)).cuda()
    fast = without_dropout(make_module(name, compile=how)).cuda()
    for clip, labels in batches():
        data = [(clip.cuda(), labels.cuda())]
        plain.zero_grad()
        fast.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        expected = losses_and_gradients(plain, data)
        assert_close(losses_and_gradients(fast, data), expected, 1e-3)
