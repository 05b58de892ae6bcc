"""Parameter groups and the learning-rate schedule of the published VSPW recipe."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import LambdaLR

from vss_models.inference.graphs import Capture, Recording

logger = logging.getLogger("vss_models")

_NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule; the defaults are the published ones.

    Attributes:
        lr: Learning rate of the backbone at its highest.
        head_lr_multiplier: Factor on ``lr`` for every parameter outside the backbone.
        weight_decay: Decoupled weight decay; the backbone's normalisation layers get none.
        betas: AdamW's decay rates of the running moments.
        warmup_steps: Optimizer steps over which a linear factor rises to 1.
        warmup_ratio: That linear factor at step 0.
        power: Exponent of the polynomial decay to zero at the last step.
    """

    lr: float = 6e-5
    head_lr_multiplier: float = 10.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        for name in ("weight_decay", "warmup_steps", "power"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must not be negative, got {value}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1], got {self.warmup_ratio}")


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Splits a model's trainable parameters into groups of equal learning rate and weight decay.

    Backbone parameters take ``settings.lr``, all others ``settings.lr * head_lr_multiplier``.
    Weight decay applies to everything except the scales and shifts of the backbone's
    normalisation layers.

    Args:
        model: A model whose encoder is the attribute ``backbone``.
        settings: Learning rate, multiplier and weight decay.

    Returns:
        Up to three groups named ``backbone``, ``backbone_norms`` and ``head``, in that order; an
        empty group is left out. Each trainable parameter is in exactly one of them.

    Raises:
        ValueError: If ``model`` has no ``backbone`` or nothing to train.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            "model must keep its encoder in an attribute `backbone`, "
            f"{type(model).__name__} has none"
        )
    in_backbone = {id(p) for p in backbone.parameters()}
    in_norm = {
        id(p)
        for module in backbone.modules()
        if isinstance(module, _NORM_TYPES)
        for p in module.parameters(recurse=False)
    }
    members: dict[str, list[nn.Parameter]] = {"backbone": [], "backbone_norms": [], "head": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in in_backbone:
            members["head"].append(parameter)
        elif id(parameter) in in_norm:
            members["backbone_norms"].append(parameter)
        else:
            members["backbone"].append(parameter)
    if not any(members.values()):
        raise ValueError("model has no trainable parameter; unfreeze some before training")

    lr = dict.fromkeys(members, settings.lr)
    lr["head"] = settings.lr * settings.head_lr_multiplier
    decay = dict.fromkeys(members, settings.weight_decay)
    decay["backbone_norms"] = 0.0
    return [
        {"name": name, "params": params, "lr": lr[name], "weight_decay": decay[name]}
        for name, params in members.items()
        if params
    ]


def warmup_poly(settings: OptimizerSettings, max_steps: int) -> Callable[[int], float]:
    """The factor on the base learning rate at every optimizer step.

    At step t the factor is ``(1 - t / max_steps) ** power``, during the first ``warmup_steps``
    steps times a linear ramp from ``warmup_ratio`` to 1; the decay counts from step 0 throughout.

    Args:
        settings: Warm-up length and ratio, and the power of the decay.
        max_steps: Optimizer steps of the whole run; from there on the factor is 0.

    Returns:
        A function of the step, counted from 0.

    Raises:
        ValueError: If ``max_steps`` is not positive.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")

    def factor(step: int) -> float:
        decay = max(0.0, 1.0 - step / max_steps) ** settings.power
        if step >= settings.warmup_steps:
            return decay
        ramp = 1.0 - (1.0 - step / settings.warmup_steps) * (1.0 - settings.warmup_ratio)
        return decay * ramp

    return factor


class AdamW(torch.optim.AdamW):
    """AdamW whose update can be replayed as one CUDA graph.

    Its state and its checkpoints are those of `torch.optim.AdamW`. On a CUDA device and on a CPU
    the update is fused: one call for all parameters, not a dozen for each. Learning rates stay
    plain numbers, which a schedule may change between updates.

    Args:
        groups: Parameter groups.
        lr: Learning rate of groups that name none.
        betas: Decay rates of the running moments.

    Attributes:
        capture: How to record the update; None does not. Only for gradients that stay where they
            are: others are updated as usual.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        devices = {p.device.type for group in groups for p in group["params"]}
        fused = True if devices in ({"cuda"}, {"cpu"}) else None
        super().__init__(groups, lr=lr, betas=betas, fused=fused, capturable=devices == {"cuda"})
        # Clipping is the trainer's, so nothing is left of what this says a fused update does.
        self._step_supports_amp_scaling = False
        self.capture: Capture | None = None
        self._rates: list[Tensor] = []
        self._addresses: list[int] = []
        self._recording: Recording | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates the parameters.

        Args:
            closure: Computes the loss and the gradients.

        Returns:
            The closure's result.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self.capture is None:
            super().step()
        else:
            self._update()
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, whichever device it is from; the way to update stays this optimizer's."""
        own = {name: self.defaults[name] for name in ("fused", "foreach", "capturable")}
        groups = [{**group, **own} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        self._addresses = []

    @torch.no_grad()
    def _update(self) -> None:
        """Replays the update; records it when it has run once on the same gradients."""
        assert self.capture is not None
        addresses = [
            parameter.grad.data_ptr()
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if addresses != self._addresses:
            self._addresses, self._recording = addresses, None
            super().step()
            return
        if not self._rates:
            device = self.param_groups[0]["params"][0].device
            self._rates = [torch.zeros((), device=device) for _ in self.param_groups]
        for rate, group in zip(self._rates, self.param_groups, strict=True):
            rate.fill_(group["lr"])
        if self._recording is None:
            try:
                self._recording = self.capture(self._step_with_rates)
            except RuntimeError as error:
                logger.warning("the optimizer is not replayed as a CUDA graph: %s", error)
                self.capture = None
                super().step()
                return
        self._recording.replay()

    def _step_with_rates(self) -> None:
        """Updates with learning rates that lie on the device, where a schedule can change them."""
        numbers = [group["lr"] for group in self.param_groups]
        try:
            for group, rate in zip(self.param_groups, self._rates, strict=True):
                group["lr"] = rate
            super().step()
        finally:
            for group, number in zip(self.param_groups, numbers, strict=True):
                group["lr"] = number


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, max_steps: int
) -> tuple[AdamW, LambdaLR]:
    """Makes the optimizer and the scheduler, to be stepped together after every update.

    Args:
        model: A model whose encoder is the attribute ``backbone``.
        settings: The recipe.
        max_steps: Optimizer steps of the whole run.

    Returns:
        The optimizer and its scheduler. The scheduler's state holds the step only, so a resumed run
        follows the settings it is given.

    Raises:
        ValueError: If the model has nothing to train or ``max_steps`` is not positive.
    """
    optimizer = AdamW(parameter_groups(model, settings), settings.lr, settings.betas)
    return optimizer, LambdaLR(optimizer, warmup_poly(settings, max_steps))
