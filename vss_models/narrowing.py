"""Which parameters autocast narrows wherever they are used, so that they can be narrowed once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def narrowed_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Lists the layers whose parameters nothing uses in full precision under autocast.

    These are linear layers and convolutions, except below modules that say ``keeps_precision =
    True``.

    Args:
        model: The model.

    Yields:
        Name and layer.
    """
    wide = [
        f"{name}." if name else ""
        for name, module in model.named_modules()
        if getattr(module, "keeps_precision", False)
    ]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(
            f"{name}.".startswith(prefix) for prefix in wide
        ):
            yield name, module


def narrowed_parameters(model: nn.Module) -> list[str]:
    """Names the trainable parameters of :func:`narrowed_layers`."""
    return [
        f"{name}.{part}" if name else part
        for name, module in narrowed_layers(model)
        for part, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]


def narrowed(tensor: Tensor) -> Tensor:
    """Casts a tensor as autocast would for a matrix product; returns it where there is none.

    For what is expanded before the product: a gradient is to be rounded once it is summed up, as
    that of any layer is, and not before.
    """
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


__all__ = ["narrowed", "narrowed_layers", "narrowed_parameters"]
