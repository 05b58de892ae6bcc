"""Layers and inputs for the tests and the benchmark of aggregate_affinity."""

from __future__ import annotations

import math

import torch

from vss_kernels import AggregationWeights, ConvNormLayer, aggregate_affinity
from vss_kernels.nn import AggregationLayers

_ONE_LAYER = AggregationLayers([(3, 1, 1)], [(5, 1, 1)], [(5, 1, 1)], [(3, 1, 1)], [(3, 1, 1)])
_TWO_LAYERS = AggregationLayers(
    [(3, 1, 1), (3, 1, 2)],
    [(3, 1, 1), (3, 1, 2)],
    [(5, 1, 1), (3, 1, 2)],
    [(3, 2, 2), (3, 2, 2)],
    [(3, 2, 2), (3, 2, 1)],
)
# As the paper has them; b3 to b5 are as b2.
PUBLISHED = {"b0": _ONE_LAYER, "b1": _TWO_LAYERS, "b2": _ONE_LAYER}
KEEP = {"b0": 0.8, "b1": 0.5, "b2": 0.5}

# Five chains (coarse, middle, fine and the two mixers) of (kernel, channels in, channels out).
CHAINS = {
    "b0": _ONE_LAYER,
    "b1": _TWO_LAYERS,
    "all kernels and channels": (
        [(1, 1, 3)],
        [(7, 1, 4), (1, 4, 3)],
        [(5, 1, 2), (3, 2, 4)],
        [(7, 3, 2), (5, 2, 4)],
        [(3, 4, 3), (7, 3, 4), (1, 4, 1)],
    ),
    "mixers of one": (*[[(3, 1, 2)]] * 3, [(1, 2, 2)], [(1, 2, 1)]),
}


def make_parameters(chains, dtype=torch.float32, device="cpu"):
    """All parameters in one vector, as the kernels take them: an error is one of the whole.

    Scales and shifts keep most of each map alive, as training does; where a norm is left with next
    to no variance, rounding would decide the gradients of eager and fused operators alike.
    """
    tensors = []
    for kernel, incoming, outgoing in (shape for chain in chains for shape in chain):
        fan = kernel * kernel * incoming
        tensors += (
            torch.randn(outgoing * fan, device=device) / math.sqrt(fan),
            torch.randn(outgoing, device=device),
            1 + 0.2 * torch.randn(outgoing, device=device),
            1 + 0.2 * torch.randn(outgoing, device=device),
        )
    return torch.cat(tensors).to(dtype)


def unpack(parameters, chains):
    """Returns the layers whose tensors are views of one vector."""
    offset = 0

    def take(*shape):
        nonlocal offset
        values = parameters[offset : offset + math.prod(shape)].reshape(shape)
        offset += math.prod(shape)
        return values

    def layer(kernel, incoming, outgoing):
        weight = take(outgoing, incoming, kernel, kernel)
        return ConvNormLayer(weight, *(take(outgoing) for _ in range(3)))

    return AggregationWeights(*(tuple(layer(*shape) for shape in chain) for chain in chains))


def make_maps(count, height, width, dtype=torch.float32, device="cpu"):
    return tuple(
        torch.randn(count, height * k, width * k, device=device).to(dtype) for k in (1, 2, 4)
    )


def aggregate_with(chains):
    def run(coarse, middle, fine, parameters):
        return aggregate_affinity(coarse, middle, fine, unpack(parameters, chains))

    return run


def numbers(chains):
    """Returns the ``layers`` argument of the registered operator."""
    shapes = [number for chain in chains for shape in chain for number in shape]
    return [len(chain) for chain in chains] + shapes
