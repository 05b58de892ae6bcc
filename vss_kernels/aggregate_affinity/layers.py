"""The layers of aggregate_affinity as its kernels take them, checked once for each model.

A model calls with the same dozens of tensors at every step, and their checks would cost more than
the call. So it is remembered which tensors were found to fit together, for as long as all of them
live and the convolutions keep their shapes. A tensor that was given other contents in place, the
registered operator notices.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime.autocast import is_autocast
from vss_kernels._runtime.checks import (
    SUPPORTED_DTYPES,
    check_same_kind,
    check_shape,
    check_tensor,
    describe,
)
from vss_kernels.aggregate_affinity.weights import AggregationWeights, ConvNormLayer

_NAME = "aggregate_affinity"

Sizes = tuple[int, ...]
"""The lengths of the five chains, then kernel, incoming and outgoing channels of each layer."""

_known: dict[tuple[Any, ...], tuple[Sizes, list[Any]]] = {}
"""Sizes of layers that fit, and weak references to their tensors.

The keys are the lengths of the chains, the identities of the tensors and the convolutions' shapes.
"""


def checked_layers(weights: AggregationWeights) -> tuple[list[Tensor], Sizes]:
    """Checks that the layers fit each other, unless the same tensors were found to before.

    Returns:
        Weight, bias, norm weight and norm bias of each layer, and the sizes of the layers.

    Raises:
        TypeError: A layer is no ``ConvNormLayer`` of tensors.
        ValueError: A chain is empty, the channels do not chain, or a kernel is even or not square.
    """
    if torch.compiler.is_compiling():
        _check_channels(weights)
        return _parameters(weights), _sizes(weights)
    try:
        parameters = _parameters(weights)
        shapes = [tensor.shape for tensor in parameters[::4]]
        key = (*map(len, weights), *map(id, parameters), *shapes)
    except (TypeError, AttributeError):  # something is no sequence or tensor: the checks name it
        _check_channels(weights)
        raise
    known = _known.get(key)
    if known is None:
        _check_channels(weights)

        def forget(_: object) -> None:
            _known.pop(key, None)

        known = _sizes(weights), [weakref.ref(tensor, forget) for tensor in parameters]
        _known[key] = known
    return parameters, known[0]


def _parameters(weights: AggregationWeights) -> list[Tensor]:
    return [tensor for chain in weights for layer in chain for tensor in layer]


def _sizes(weights: AggregationWeights) -> Sizes:
    sizes = [len(chain) for chain in weights]
    for chain in weights:
        for layer in chain:
            outgoing, incoming, kernel, _ = layer.weight.shape
            sizes += (kernel, incoming, outgoing)
    return tuple(sizes)


def check_kinds(coarse: Tensor, weights: AggregationWeights, parameters: list[Tensor]) -> None:
    """Checks that the parameters share a dtype and a device with the maps.

    Raises:
        TypeError: A dtype differs.
        ValueError: A device differs.
    """
    # Under autocast the parameters are not cast: there are dozens, and each is tiny.
    dtype = parameters[0].dtype if is_autocast(coarse) else coarse.dtype
    device = coarse.device
    if dtype in SUPPORTED_DTYPES:
        for tensor in parameters:
            if tensor.dtype != dtype or tensor.device != device:
                break
        else:
            return
    like = coarse.new_empty((), dtype=dtype)
    check_same_kind(_NAME, coarse=like, **_named(weights))


def _check_channels(weights: AggregationWeights) -> None:
    refined = [
        _check_chain(name, getattr(weights, name), 1) for name in ("coarse", "middle", "fine")
    ]
    mixed = _check_chain("coarse_to_middle", weights.coarse_to_middle, refined[0])
    final = _check_chain("middle_to_fine", weights.middle_to_fine, mixed)
    for name, have, want in (
        ("middle", refined[1], refined[0]),
        ("fine", refined[2], mixed),
        ("middle_to_fine", final, 1),
    ):
        if have != want:
            raise ValueError(
                f"{_NAME}: the last layer of weights.{name} must give {want} channel(s), got {have}"
            )


def _check_chain(name: str, chain: tuple[ConvNormLayer, ...], channels: int) -> int:
    """Checks that the layers fit each other and the incoming channels; returns the outgoing."""
    if len(chain) == 0:
        raise ValueError(f"{_NAME}: weights.{name} must hold at least one layer, got none")
    for position, layer in enumerate(chain):
        if isinstance(layer, ConvNormLayer) and _fits(layer, channels):
            channels = layer.bias.shape[0]
            continue
        label = f"weights.{name}[{position}]"
        if not isinstance(layer, ConvNormLayer):
            raise TypeError(f"{_NAME}: {label} must be a ConvNormLayer, got {describe(layer)}")
        check_tensor(_NAME, f"{label}.weight", layer.weight, "Cout,Cin,k,k")
        outgoing, _, kernel, _ = layer.weight.shape
        if kernel % 2 == 0:
            raise ValueError(f"{_NAME}: {label}.weight must have an odd kernel, got {kernel}")
        check_shape(_NAME, f"{label}.weight", layer.weight, (None, channels, kernel, kernel))
        for part in ("bias", "norm_weight", "norm_bias"):
            vector = getattr(layer, part)
            check_tensor(_NAME, f"{label}.{part}", vector, "Cout")
            check_shape(_NAME, f"{label}.{part}", vector, (outgoing,))
        channels = outgoing
    return channels


def _fits(layer: ConvNormLayer, channels: int) -> bool:
    """Whether a layer is right in every respect that :func:`_check_chain` names one by one."""
    weight, *vectors = layer
    if not all(isinstance(tensor, Tensor) for tensor in layer) or weight.dim() != 4:
        return False
    outgoing, incoming, kernel, other = weight.shape
    return (
        incoming == channels
        and kernel == other
        and kernel % 2 == 1
        and all(vector.shape == (outgoing,) for vector in vectors)
    )


def _named(weights: AggregationWeights) -> dict[str, Tensor]:
    return {
        f"weights.{name}[{position}].{part}": tensor
        for name, chain in weights._asdict().items()
        for position, layer in enumerate(chain)
        for part, tensor in layer._asdict().items()
    }
