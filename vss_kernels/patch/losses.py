"""Bilinear upsampling before a cross-entropy or an argmax: upsample_cross_entropy.

The original methods run, but the resize of the logits is deferred (see ``deferred.py``): so any
version of a library, and a loss that is computed outside the model, come to the fused operator.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from vss_kernels.patch.deferred import DeferUpsampling
from vss_kernels.patch.kinds import Kind, traced


def _num_labels(model: Any) -> Any:
    return getattr(getattr(model, "config", None), "num_labels", None)


def _looks_like_a_model_with_loss(model: nn.Module) -> bool:
    return (
        "decode_head" in dict(model.named_children())
        and isinstance(_num_labels(model), int)
        and "labels" in inspect.signature(model.forward).parameters
    )


def _why_not_model(model: Any) -> str | None:
    if _num_labels(model) < 2:
        return "its loss is not a cross-entropy: it has one class"
    return None


def _run_model(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    # From the head's logits on, so that the calls of the whole encoder are not looked at.
    with contextlib.ExitStack() as stack:

        def defer(*_: Any) -> None:
            stack.enter_context(DeferUpsampling(_num_labels(model)))

        stack.callback(model.decode_head.register_forward_hook(defer).remove)
        return original(model, *args, **kwargs)


def _looks_like_a_head_with_loss(method: str, head: Any) -> bool:
    return (
        callable(getattr(head, method, None))
        and hasattr(head, "loss_decode")
        and isinstance(getattr(head, "num_classes", None), int)
    )


def _run_head(original: Any, head: Any, *args: Any, **kwargs: Any) -> Any:
    channels = getattr(head, "out_channels", None) or head.num_classes
    with DeferUpsampling(channels):
        return original(head, *args, **kwargs)


def _logits_at(head: nn.Module) -> int | None:
    """Position of the one upsampling layer that follows a convolution, or ``None``."""
    if not isinstance(head, nn.Sequential):
        return None
    layers = list(head)
    upsampling = [
        position
        for position, layer in enumerate(layers)
        if isinstance(layer, nn.Upsample) and layer.mode == "bilinear"
    ]
    if len(upsampling) != 1 or upsampling[0] == 0:
        return None
    return upsampling[0] if isinstance(layers[upsampling[0] - 1], nn.Conv2d) else None


def _why_not_sequence(head: Any) -> str | None:
    position = _logits_at(head)
    assert position is not None
    probe = torch.randn(1, head[position - 1].out_channels, 4, 4)
    for layer in list(head)[position + 1 :]:
        with torch.no_grad():
            answer = layer(probe)
        if not isinstance(answer, Tensor) or not torch.equal(answer, probe):
            return f"{type(layer).__name__} follows the upsampling, so its results are no logits"
    return None


def _run_sequence(original: Any, head: Any, *args: Any, **kwargs: Any) -> Any:
    position = _logits_at(head)
    assert position is not None
    with DeferUpsampling(head[position - 1].out_channels):
        return original(head, *args, **kwargs)


def _nothing_against(_: nn.Module) -> str | None:
    return None


LOSSES = (
    Kind(
        name="model with a loss",
        operator="upsample_cross_entropy",
        what="upsampling and cross-entropy of a model that takes labels, as in transformers",
        looks_like=_looks_like_a_model_with_loss,
        why_not=_why_not_model,
        run=_run_model,
        cannot_take=traced,
        example=None,
    ),
    *(
        Kind(
            name=f"head with {method}",
            operator="upsample_cross_entropy",
            what=f"upsampling and cross-entropy in {method}, as in mmsegmentation",
            looks_like=functools.partial(_looks_like_a_head_with_loss, method),
            why_not=_nothing_against,
            run=_run_head,
            cannot_take=traced,
            example=None,
            method=method,
        )
        for method in ("losses", "loss_by_feat")
    ),
    Kind(
        name="upsampled logits",
        operator="upsample_cross_entropy",
        what="upsampling at the end of a head",
        looks_like=lambda head: _logits_at(head) is not None,
        why_not=_why_not_sequence,
        run=_run_sequence,
        cannot_take=traced,
        example=None,
    ),
)
