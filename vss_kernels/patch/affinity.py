"""MRCFA's affinity module: select_tokens, masked_affinity and aggregate_affinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vss_kernels.aggregate_affinity import NORM_EPSILON, AggregationWeights, ConvNormLayer
from vss_kernels.nn.relation import relate
from vss_kernels.patch.kinds import Kind, hooked

_PROJECTIONS = ("q1", "q2", "q3", "k1", "k2", "k3")
# In the order of AggregationWeights.
_CHAINS = (
    "encoder_layer4",
    "encoder_layer3",
    "encoder_layer2",
    "encoder_layer4to3",
    "encoder_layer3to2",
)


def _looks_like(module: nn.Module) -> bool:
    return {*_PROJECTIONS, "hpn"} <= dict(module.named_children()).keys()


def _why_not(module: nn.Module) -> str | None:
    projections = [module.get_submodule(name) for name in _PROJECTIONS]
    if not all(
        isinstance(layer, nn.Linear) and layer.in_features == layer.out_features
        for layer in projections
    ):
        return "q1 to q3 and k1 to k3 must be linear layers with as many channels out as in"
    refinement = module.get_submodule("hpn")
    chains = dict(refinement.named_children())
    if set(chains) != set(_CHAINS):
        return f"hpn must hold {', '.join(_CHAINS)}, not {', '.join(chains)}"
    for name, chain in chains.items():
        reason = _why_not_chain(chain)
        if reason is not None:
            return f"hpn.{name} {reason}"
    known = {id(parameter) for layer in projections for parameter in layer.parameters()}
    known |= {id(tensor) for chain in _weights(module) for layer in chain for tensor in layer}
    for name, parameter in module.named_parameters():
        if id(parameter) not in known:
            return f"it has the parameter {name}, which MRCFA's module has not"
    top, keep = getattr(module, "k_top", None), getattr(module, "threh", None)
    if not isinstance(top, int) or top < 1:
        return f"k_top must be a positive integer, not {top!r}"
    if not isinstance(keep, float | int) or not 0 < keep <= 1:
        return f"threh, the fraction of tokens kept, must be in (0, 1], not {keep!r}"
    return hooked([*projections, *refinement.modules()])


def _why_not_chain(chain: nn.Module) -> str | None:
    layers = list(chain.children())
    if not isinstance(chain, nn.Sequential) or not layers or len(layers) % 3:
        return "must be a sequence of convolution, GroupNorm and ReLU, again and again"
    for start in range(0, len(layers), 3):
        wrapped, norm, activation = layers[start : start + 3]
        conv = getattr(wrapped, "conv2", None)
        if not isinstance(conv, nn.Conv2d) or conv.bias is None:
            return f"must have a convolution with bias at {start}.conv2"
        kernel = conv.kernel_size[0]
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, padding=kernel // 2)
        for setting in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
            have, want = getattr(conv, setting), getattr(plain, setting)
            if have != want:
                return f"must have {setting} {want} at {start}.conv2, not {have}"
        if (
            not isinstance(norm, nn.GroupNorm)
            or (norm.num_groups, norm.eps) != (1, NORM_EPSILON)
            or norm.weight is None
        ):
            return f"must have GroupNorm with one group and eps {NORM_EPSILON} at {start + 1}"
        if not isinstance(activation, nn.ReLU):
            return f"must have a ReLU at {start + 2}"
    return None


def _weights(module: nn.Module) -> AggregationWeights:
    chains = []
    for name in _CHAINS:
        layers: list[Any] = list(module.get_submodule(f"hpn.{name}").children())
        chains.append(
            tuple(
                ConvNormLayer(wrapped.conv2.weight, wrapped.conv2.bias, norm.weight, norm.bias)
                for wrapped, norm in zip(layers[::3], layers[1::3], strict=True)
            )
        )
    return AggregationWeights(*chains)


def _cannot_take(
    module: Any, query_frame: Sequence[Tensor], supp_frame: Sequence[Tensor]
) -> str | None:
    if len(query_frame) != 4 or len(supp_frame) != 4:
        return "it takes four scales"
    references, targets = list(query_frame[1:]), list(supp_frame[1:])
    if any(maps.dim() != 5 for maps in (*references, *targets)):
        return "it takes maps of five dimensions"
    if any(maps.shape[1] != 1 for maps in targets):
        return "it takes one target frame"
    # Where the grids differ the released program resizes affinities and scores; it still does.
    height, width = references[0].shape[-2:]
    grids = [tuple(maps.shape[-2:]) for maps in references]
    sizes = [tuple(maps.shape[-2:]) for maps in targets]
    if grids != [(height, width)] * 3 or sizes != [
        (scale * height, scale * width) for scale in (4, 2, 1)
    ]:
        return "the grids of target and references do not match"
    if int(module.threh * height * width) < 1 or module.k_top > height * width:
        return "there are too few tokens to choose from"
    return None


def _run(
    original: Any, module: Any, query_frame: Sequence[Tensor], supp_frame: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    # The released names are the other way round: "query" frames answer, the "support" frame asks.
    references, targets = query_frame[1:], supp_frame[1:]
    asked = [
        projection(maps.squeeze(1).flatten(2).mT)  # (B, Q_s, C_s)
        for projection, maps in zip((module.q1, module.q2, module.q3), targets, strict=True)
    ]
    answering = [
        projection(maps.flatten(3).mT)  # (B, R, N, C_s)
        for projection, maps in zip((module.k1, module.k2, module.k3), references, strict=True)
    ]
    sizes = [(maps.shape[-2], maps.shape[-1]) for maps in targets]
    tokens = answering[-1].shape[2]
    affinity, index = relate(
        asked, answering, sizes, _weights(module), int(module.threh * tokens), module.k_top
    )
    mask = torch.zeros(*index.shape[:2], tokens, dtype=torch.bool, device=index.device)
    return affinity.mT.contiguous(), mask.scatter(2, index, True)


def _example(module: Any) -> tuple[Any, ...]:
    dims = [layer.in_features for layer in (module.q1, module.q2, module.q3)]
    scales = list(zip(dims, (4, 2, 1), strict=True))
    # Small enough that affinities do not saturate what follows.
    references = [dim**-0.5 * torch.randn(1, 3, dim, 3, 4) for dim in dims]
    target = [dim**-0.5 * torch.randn(1, 1, dim, 3 * scale, 4 * scale) for dim, scale in scales]
    ignored = torch.zeros(1, 1, 1, 1, 1)
    return [ignored, *references], [ignored, *target]


AFFINITY = Kind(
    name="MRCFA's affinity module",
    operator="aggregate_affinity",
    what="affinity module of MRCFA (select_tokens, masked_affinity, aggregate_affinity)",
    looks_like=_looks_like,
    why_not=_why_not,
    run=_run,
    cannot_take=_cannot_take,
    example=_example,
)
