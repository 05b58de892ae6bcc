"""Which parameters autocast narrows wherever they are used, so that they can be narrowed once."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


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


__all__ = ["narrowed_layers", "narrowed_parameters"]
