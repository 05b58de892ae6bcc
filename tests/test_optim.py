"""Parameter groups and learning rates against hand-computed values of the recipe."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.recorded_calls import FailingCapture, RecordedCalls
from vss_models.training.optim import (
    OptimizerSettings,
    build_optimizer,
    parameter_groups,
    warmup_poly,
)


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(1, 4))
        self.backbone.append(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)))
        self.head = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_groups_follow_the_recipe() -> None:
    model = TinyModel()
    groups = {group["name"]: group for group in parameter_groups(model, OptimizerSettings())}

    assert names(model, groups["backbone"]["params"]) == {
        "backbone.0.weight",
        "backbone.0.bias",
        "backbone.3.1.weight",
        "backbone.3.1.bias",
    }
    assert names(model, groups["backbone_norms"]["params"]) == {
        f"backbone.{module}.{kind}" for module in ("1", "2", "3.0") for kind in ("weight", "bias")
    }
    assert names(model, groups["head"]["params"]) == {
        f"head.{module}.{kind}" for module in (0, 1) for kind in ("weight", "bias")
    }
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "backbone": (6e-5, 0.01),
        "backbone_norms": (6e-5, 0.0),
        "head": (pytest.approx(6e-4), 0.01),
    }


def test_frozen_parameters_are_left_out() -> None:
    model = TinyModel()
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, OptimizerSettings())
    assert [group["name"] for group in groups] == ["head"]

    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(model, OptimizerSettings())


def test_model_without_a_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="`backbone`, Linear has none"):
        parameter_groups(nn.Linear(1, 1), OptimizerSettings())


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (750, (1 - 750 / 160_000) * (0.5 + 0.5e-6)),
        (1499, (1 - 1499 / 160_000) * (1 - (1 / 1500) * (1 - 1e-6))),
        (1500, 1 - 1500 / 160_000),
        (80_000, 0.5),
        (159_999, 1 / 160_000),
        (160_000, 0.0),
        (160_001, 0.0),
    ],
)
def test_schedule_at_the_published_lengths(step: int, expected: float) -> None:
    factor = warmup_poly(OptimizerSettings(), max_steps=160_000)
    assert factor(step) == pytest.approx(expected, rel=1e-12)


def test_schedule_without_warmup_and_with_another_power() -> None:
    factor = warmup_poly(OptimizerSettings(warmup_steps=0, power=0.9), max_steps=10)
    assert [factor(step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.5**0.9, 0.0])


def test_optimizer_steps_at_the_scheduled_rates() -> None:
    settings = OptimizerSettings(lr=0.1, warmup_steps=2, warmup_ratio=0.1)
    optimizer, scheduler = build_optimizer(TinyModel(), settings, max_steps=4)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = [0.1, 0.75 * 0.55, 0.5, 0.25, 0.0]
    for rate, factor in zip(rates, factors, strict=True):
        assert rate == pytest.approx([0.1 * factor, 0.1 * factor, 1.0 * factor])


def test_the_schedule_is_not_part_of_the_saved_state() -> None:
    """A resumed run with other settings must follow those, so nothing of them may be stored."""
    _, scheduler = build_optimizer(TinyModel(), OptimizerSettings(), max_steps=7)
    assert scheduler.state_dict()["lr_lambdas"] == [None, None, None]


def test_one_step_matches_adamw_by_hand() -> None:
    model = TinyModel().double()
    settings = OptimizerSettings(lr=0.01, warmup_steps=0)
    optimizer, _ = build_optimizer(model, settings, max_steps=100)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        lr = 0.1 if name.startswith("head") else 0.01
        norm = name.startswith(("backbone.1", "backbone.2", "backbone.3.0"))
        decay = 0.0 if norm else 0.01
        # After one step both bias-corrected moments are 1, so the update is lr / (1 + eps).
        expected = before[name] * (1 - lr * decay) - lr / (1 + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("head_lr_multiplier", -1.0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("warmup_ratio", 1.5),
        ("power", -1.0),
    ],
)
def test_bad_settings_name_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        OptimizerSettings(**{field: value})


def test_bad_length_is_refused() -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        warmup_poly(OptimizerSettings(), 0)


def tiny_problem() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(3)
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    return model, [torch.randn_like(parameter) for parameter in model.parameters()]


def test_replayed_updates_are_those_of_adamw() -> None:
    """The rate changes at every step; replays read it, a load starts a new recording."""
    settings = OptimizerSettings(lr=0.1, warmup_steps=4)
    weights = []
    for replayed in (False, True):
        model, gradients = tiny_problem()
        optimizer, schedule = build_optimizer(model, settings, 20)
        if replayed:
            optimizer.capture = RecordedCalls()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        for number in range(12):
            if number == 6:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(gradient * math.cos(number))
            optimizer.step()
            schedule.step()
            assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
        weights.append([parameter.detach() for parameter in model.parameters()])
        if replayed:
            assert isinstance(optimizer.capture, RecordedCalls)
            assert (optimizer.capture.recorded, optimizer.capture.replayed) == (2, 10)
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_an_update_that_cannot_be_recorded_is_done(caplog: pytest.LogCaptureFixture) -> None:
    model, gradients = tiny_problem()
    optimizer, _ = build_optimizer(model, OptimizerSettings(warmup_steps=0), 20)
    optimizer.capture = FailingCapture()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    for _ in range(3):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step()
        for one, other in zip(model.parameters(), before, strict=True):
            assert not torch.equal(one, other)
    (record,) = (r for r in caplog.records if r.name == "vss_models")
    assert "not replayed" in record.getMessage()
    assert next(iter(optimizer.state.values()))["step"] == 3


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param({"fused": True, "capturable": True}, id="on a GPU"),
        pytest.param({"fused": None}, id="parameter by parameter"),  # earlier versions on a CPU
    ],
)
def test_a_state_that_was_updated_in_another_way_is_continued(saved: dict[str, Any]) -> None:
    model, gradients = tiny_problem()
    optimizer, _ = build_optimizer(model, OptimizerSettings(), 20)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group.update(saved)
    other, _ = build_optimizer(model, OptimizerSettings(), 20)
    other.load_state_dict(state)
    assert all(group["fused"] for group in other.param_groups)
    assert not any(group["capturable"] for group in other.param_groups)
    other.step()
    assert next(iter(other.state.values()))["step"] == 2


def test_the_fused_update_is_that_of_the_definition_in_float64() -> None:
    model, gradients = tiny_problem()
    exact = copy.deepcopy(model).double()
    optimizer, scheduler = build_optimizer(model, OptimizerSettings(warmup_steps=0), 20)
    groups = [
        {**group, "params": [], "fused": None, "foreach": False} for group in optimizer.param_groups
    ]
    twin = dict(zip(model.parameters(), exact.parameters(), strict=True))
    for group, other in zip(optimizer.param_groups, groups, strict=True):
        other["params"] = [twin[parameter] for parameter in group["params"]]
    reference = torch.optim.AdamW(groups)
    for step in range(5):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient * (step + 1)
            twin[parameter].grad = parameter.grad.double()
        for group, other in zip(optimizer.param_groups, reference.param_groups, strict=True):
            other["lr"] = group["lr"]
        optimizer.step()
        reference.step()
        scheduler.step()
    assert all(group["fused"] for group in optimizer.param_groups)
    for parameter, expected in twin.items():
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7)
