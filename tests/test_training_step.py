"""Forward, loss and backward in one call: the numbers of PyTorch's own way, compiled or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from tests.support.capture_audit import AuditedCapture
from tests.support.recorded_calls import FailingCapture, RecordedCalls
from tests.support.tiny_training import NUM_CLASSES, make_module, without_dropout
from vss_models.inference.graphs import Capture, CudaCapture
from vss_models.narrowing import narrowed_parameters
from vss_models.training import SegmentationModule
from vss_models.training.optim import OptimizerSettings, build_optimizer
from vss_models.training.step import ALIGNMENT, TrainingStep, chosen_execution, chosen_step

NAMES = ["mrcfa_b0", "cffm_b0", "segformer_b0"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def batch(seed: int, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(2, 4, 3, height, width, generator=generator)
    labels = torch.randint(NUM_CLASSES, (2, 4, height, width), generator=generator)
    return clip, labels.to(torch.uint8)


def module_for(name: str) -> SegmentationModule:
    return without_dropout(make_module(name)).train()


def plain_step(module: SegmentationModule, clip: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss of a batch; adds the gradients to the parameters."""
    loss = module.loss(module.model(clip), labels)
    with torch.autocast("cpu", enabled=False):
        loss.backward()
    return loss.detach()


def gradients(module: SegmentationModule) -> list[Tensor]:
    found = [parameter.grad for parameter in module.model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_autograd(name: str, half: bool) -> None:
    """Bit for bit, also where autocast would narrow each matrix where it is used."""
    plain, module = module_for(name), module_for(name)
    step = TrainingStep(module.model, module.loss)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        for seed in range(2):
            plain.zero_grad()
            want = plain_step(plain, *batch(seed))
            logits, have = step(*batch(seed))
            assert not logits.per_frame.requires_grad
            assert torch.equal(have, want)
            for one, other in zip(gradients(module), gradients(plain), strict=True):
                assert one.dtype == torch.float32
                assert torch.equal(one, other)
    for one, other in zip(module.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(one, other)


def test_gradients_of_several_batches_add_up() -> None:
    plain, module = module_for("cffm_b0"), module_for("cffm_b0")
    capture = RecordedCalls()
    step = TrainingStep(module.model, module.loss, capture=capture)
    for _ in range(4):
        plain.zero_grad()
        for number in range(2):
            step(*batch(number), adds=number > 0, factor=0.5)
            (plain.loss(plain.model(batch(number)[0]), batch(number)[1]) / 2).backward()
        for one, other in zip(gradients(module), gradients(plain), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    # One recording for batches that start a sum, one for those that add to it.
    assert (capture.recorded, capture.replayed) == (2, 4)


@pytest.mark.parametrize(
    ("device", "how", "recorder"),
    [
        pytest.param("cpu", "aot_eager", RecordedCalls, marks=pytest.mark.slow),
        pytest.param("cuda", "cuda-graph", CudaCapture, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_fifty_steps_follow_the_uncompiled_run(
    name: str, device: str, how: str, recorder: Callable[[], Capture]
) -> None:
    """Compiled, recorded and replayed, with the optimizer's update and its changing rate."""
    settings = OptimizerSettings(lr=3e-4, head_lr_multiplier=3.0, warmup_steps=10)
    losses: list[list[float]] = []
    for fast in (False, True):
        module = module_for(name).to(device)
        optimizer, schedule = build_optimizer(module.model, settings, 50)
        captures = [AuditedCapture(recorder()) for _ in range(2)]
        step = TrainingStep(module.model, module.loss, how, captures[0])
        if fast:
            optimizer.capture = captures[1]
        curve = []
        for number in range(50):
            clip, labels = (tensor.to(device) for tensor in batch(number % 4))
            if fast:
                curve.append(float(step(clip, labels)[1]))
            else:
                optimizer.zero_grad()
                curve.append(float(plain_step(module, clip, labels)))
            optimizer.step()
            schedule.step()
        losses.append(curve)
        if fast:
            counts = [(capture.recorded, capture.replayed) for capture in captures]
            assert counts == [(1, 48), (1, 49)]
    plain, replayed = (torch.tensor(curve) for curve in losses)
    assert plain[-4:].mean() < plain[:4].mean()
    assert (replayed - plain).abs().max() <= 2e-3 * plain.abs().max()
    assert (replayed - plain)[:10].abs().max() <= 1e-5 * plain.abs().max()


def test_gradients_begin_where_vectors_may() -> None:
    module = module_for("cffm_b0")  # it has parameters of one number
    step = TrainingStep(module.model, module.loss)
    step(*batch(0))
    assert step._flat is not None
    for gradient in gradients(module):
        assert (gradient.data_ptr() - step._flat.data_ptr()) % (4 * ALIGNMENT) == 0
    total = sum(gradient.double().sum() for gradient in gradients(module))
    torch.testing.assert_close(step._flat.double().sum(), total)


def test_further_sizes_run_uncompiled_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    module = module_for("segformer_b0")
    step = TrainingStep(module.model, module.loss, "eager")
    step(*batch(0))
    assert step._call is not None
    step._call.most_sizes = 2
    with caplog.at_level(logging.WARNING, "vss_models"):
        for width in (32, 64, 128, 160, 128):
            plain = module_for("segformer_b0")
            want = plain_step(plain, *batch(1, 32, width))
            torch.testing.assert_close(step(*batch(1, 32, width))[1], want, rtol=1e-5, atol=0)
    (record,) = (r for r in caplog.records if r.name == "vss_models")
    assert "more than 2 sizes" in record.getMessage()


def test_a_failed_recording_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    plain, module = module_for("mrcfa_b0"), module_for("mrcfa_b0")
    step = TrainingStep(module.model, module.loss, capture=FailingCapture())
    with caplog.at_level(logging.WARNING, "vss_models"):
        for number in range(4):
            plain.zero_grad()
            want = plain_step(plain, *batch(number))
            assert torch.equal(step(*batch(number))[1], want)
            for one, other in zip(gradients(module), gradients(plain), strict=True):
                assert torch.equal(one, other)
    (record,) = caplog.records
    assert "not permitted when stream is capturing" in record.getMessage()


class CountingNorm(nn.SyncBatchNorm):
    """Looks at its input's contents, as SyncBatchNorm looks at how many others have; on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises."""
        rows = x.transpose(0, 1).flatten(1).t()
        counted = rows[rows.isfinite().all(1)]
        mean, variance = counted.mean(0), counted.var(0, unbiased=False)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def test_synchronised_normalisation_is_left_out_of_compilation() -> None:
    """The layer is exchanged after the step was made, as a trainer does."""
    losses = []
    for how in (None, "aot_eager"):
        module = module_for("segformer_b0")
        step = TrainingStep(module.model, module.loss, how)
        fusion = module.model.head.fusion
        norm = CountingNorm(fusion.norm.num_features)
        norm.weight, norm.bias = fusion.norm.weight, fusion.norm.bias
        fusion.norm = norm
        losses.append(torch.stack([step(*batch(number))[1] for number in range(2)]))
        assert gradients(module)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_which_parameters_are_narrowed() -> None:
    model = make_module("mrcfa_b0").model
    names = set(narrowed_parameters(model))
    assert "backbone.stages.0.blocks.0.attention.query.weight" in names
    assert "backbone.stages.0.blocks.0.mlp.depthwise.bias" in names
    assert not any("norm" in name or "fusion" in name or "aggregation" in name for name in names)
    model.backbone.requires_grad_(False)
    assert not any(name.startswith("backbone") for name in narrowed_parameters(model))


def trainer(device: str, precision: str = "bf16-mixed") -> Any:
    strategy = SingleDeviceStrategy(device=torch.device(device))
    return SimpleNamespace(precision=precision, strategy=strategy)


def test_automatic_execution(caplog: pytest.LogCaptureFixture) -> None:
    """On a GPU everything, elsewhere nothing; the reason is logged where the settings forbid it."""
    with caplog.at_level(logging.WARNING, "vss_models"):
        assert chosen_execution("auto", trainer("cpu")) is None
        assert chosen_execution("auto", trainer("cuda")) == "cuda-graph"
        assert chosen_execution(None, trainer("cuda")) is None
        assert chosen_execution("inductor", trainer("cpu")) == "inductor"
        assert not caplog.records
        assert chosen_execution("auto", trainer("cuda", "16-mixed")) is None
    (record,) = caplog.records
    assert "trainer.precision='16-mixed'" in record.getMessage()


def test_only_an_automatic_choice_falls_back() -> None:
    module = module_for("segformer_b0")
    automatic = chosen_step(module.model, module.loss, "auto", trainer("cuda"))
    named = chosen_step(module.model, module.loss, "inductor", trainer("cuda"))
    assert automatic is not None
    assert named is not None
    assert (automatic._prepared().falls_back, automatic.replays) == (True, True)
    assert (named._prepared().falls_back, named.replays) == (False, False)
    assert chosen_step(module.model, module.loss, "auto", trainer("cpu")) is None


def test_what_was_asked_for_and_cannot_be_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"CUDA graphs need a CUDA device.*use 'inductor'"):
        chosen_execution("cuda-graph", trainer("cpu"))
    with pytest.raises(ValueError, match=r"compile='inductor' is not possible: trainer.precision"):
        chosen_execution("inductor", trainer("cuda", "16-mixed"))
    single = SimpleNamespace(root_device=torch.device("cuda"))
    with pytest.raises(ValueError, match="SimpleNamespace; use one device or 'ddp'"):
        chosen_execution("inductor", SimpleNamespace(precision="32-true", strategy=single))


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_replays_on_a_gpu(name: str, half: bool) -> None:
    """A replay has the loss and the gradients of the uncompiled step."""
    plain, module = module_for(name).cuda(), module_for(name).cuda()
    step = TrainingStep(module.model, module.loss, "cuda-graph")
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        for number in range(6):
            clip, labels = (tensor.cuda() for tensor in batch(number))
            plain.zero_grad()
            loss = plain.loss(plain.model(clip), labels)
            with torch.autocast("cuda", enabled=False):
                loss.backward()
            have = step(clip, labels)[1]
            allowed = 5e-2 if half else 1e-3
            assert (have - loss).abs() <= allowed * loss
            largest = max(float(gradient.abs().max()) for gradient in gradients(plain))
            for one, other in zip(gradients(module), gradients(plain), strict=True):
                assert (one - other).abs().max() <= allowed * (other.abs().max() + 1e-2 * largest)
    assert step.replays
