"""Parameter groups and the learning-rate schedule of the published VSPW recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import LambdaLR

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


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, max_steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
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
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings), lr=settings.lr, betas=settings.betas
    )
    return optimizer, LambdaLR(optimizer, warmup_poly(settings, max_steps))
