"""Whole runs with compiled training steps: the weights of the uncompiled run, for both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.recorded_calls import RecordedCalls
from tests.support.tiny_training import make_data, make_dataset, make_module, run, without_dropout
from vss_models.checkpoints import load_model
from vss_models.training import SegmentationModule
from vss_models.training import module as training_module
from vss_models.training import step as training_step
from vss_models.training.step import TrainingStep


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def trained(root: Path, output: Path, name: str, compile: str | None, **options: Any) -> list[Any]:
    """Returns the weights after three steps without dropout."""
    module = without_dropout(make_module(name, compile=compile))
    run(module, make_data(root), output, 3, **options)
    return list(module.model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=["clipping", "accumulation", "bfloat16"],
)
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_a_run_in_one_call_is_the_plain_run(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With recorded steps and updates, as on a GPU, but for the compiler."""
    root = make_dataset(tmp_path / "set")
    want = trained(root, tmp_path / "plain", name, None, **options)
    captures: list[RecordedCalls] = []

    def capture() -> RecordedCalls:
        captures.append(RecordedCalls())
        return captures[-1]

    def recorded_step(model: Any, loss: Any, how: str, falls_back: bool) -> TrainingStep:
        assert (how, falls_back) == ("eager", False)
        return TrainingStep(model, loss, None, capture())

    monkeypatch.setattr(training_step, "TrainingStep", recorded_step)
    monkeypatch.setattr(training_module, "CudaCapture", capture)
    have = trained(root, tmp_path / "fast", name, "eager", **options)
    step, update = captures
    assert step.replayed > 0
    assert (update.recorded, update.replayed) == (1, 2)
    for (key, one), (_, other) in zip(have, want, strict=True):
        # AdamW divides by a gradient's size, so rounding shows where gradients vanish.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_a_compiled_run_is_the_plain_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph without a break; what it writes is an ordinary checkpoint."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_with = torch.compile

    def compile_and_count(function, **settings):  # type: ignore[no-untyped-def]
        assert settings["fullgraph"]
        return compile_with(function, **{**settings, "backend": counter})

    root = make_dataset(tmp_path / "set")
    want = trained(root, tmp_path / "plain", name, None)
    monkeypatch.setattr(torch, "compile", compile_and_count)
    have = trained(root, tmp_path / "fast", name, "aot_eager")
    assert counter.frame_count == 1
    for (key, one), (_, other) in zip(have, want, strict=True):
        # AdamW divides by the gradient's size, so rounding shows where gradients vanish.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=4e-3, msg=key)
    written = load_model(tmp_path / "fast" / "last.pt").state_dict()
    for key, one in have:
        assert torch.equal(written[key], one)


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_for_training_alone(
    tf32: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting of the run, off in validation, and as before afterwards."""
    seen: dict[str, set[tuple[bool, bool]]] = {"training_step": set(), "validation_step": set()}

    def now() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def watch(step: str) -> None:
        original = getattr(SegmentationModule, step)

        def run_step(module: SegmentationModule, *arguments: Any) -> Any:
            seen[step].add(now())
            return original(module, *arguments)

        monkeypatch.setattr(SegmentationModule, step, run_step)

    for step in seen:
        watch(step)
    before = now()
    data = make_data(make_dataset(tmp_path / "set"))
    options = {"limit_val_batches": 1, "val_check_interval": 1}
    run(make_module("segformer_b0", tf32=tf32), data, tmp_path / "run", 2, **options)
    assert seen == {"training_step": {(tf32, tf32)}, "validation_step": {(False, False)}}
    assert now() == before


def test_what_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compile must be None.*inductor.*, got 'fast'"):
        make_module(compile="fast")
    data = make_data(make_dataset(tmp_path / "set"))
    with pytest.raises(ValueError, match="need a CUDA device, the model is on cpu; use 'inductor'"):
        run(make_module(compile="cuda-graph"), data, tmp_path / "run", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=["", "accumulation"])
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_runs_on_a_gpu(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """By default a run is compiled and replayed there, and trains the same."""
    root = make_dataset(tmp_path / "set")
    options = {"accelerator": "gpu", **options}
    want = trained(root, tmp_path / "plain", name, None, **options)
    have = trained(root, tmp_path / "fast", name, "auto", **options)
    for (key, one), (_, other) in zip(have, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=4e-3, msg=key)
