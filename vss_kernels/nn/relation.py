"""MRCFA's relation between a target frame and its references, as modules around the operators."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vss_kernels.aggregate_affinity import (
    NORM_EPSILON,
    AggregationWeights,
    ConvNormLayer,
    aggregate_affinity,
)
from vss_kernels.masked_affinity import masked_affinity
from vss_kernels.nn.linear import TokenLinear
from vss_kernels.select_tokens import select_tokens

Chain = Sequence[tuple[int, int, int]]
"""Layers of a chain as (kernel, incoming channels, outgoing channels)."""


class AggregationLayers(NamedTuple):
    """The sizes of the five chains of :class:`AffinityAggregation`.

    Attributes:
        coarse: Refinement of the 1/32 maps; its first layer takes one channel.
        middle: Refinement of the 1/16 maps; its first layer takes one channel.
        fine: Refinement of the 1/8 maps; its first layer takes one channel.
        coarse_to_middle: Mixer after the coarse and middle maps were added.
        middle_to_fine: Mixer after the fine maps were added; its last layer gives one channel.

    Example:
        >>> one = [(3, 1, 1)]  # one layer, kernel 3, of one channel
        >>> layers = vss_kernels.nn.AggregationLayers(one, [(5, 1, 1)], [(5, 1, 1)], one, one)
        >>> layers.fine
        [(5, 1, 1)]
    """

    coarse: Chain
    middle: Chain
    fine: Chain
    coarse_to_middle: Chain
    middle_to_fine: Chain


class ConvNorm(nn.Module):
    """The parameters of a convolution and the GroupNorm (one group) behind it.

    Args:
        kernel: Side of the convolution's kernel, odd.
        incoming: Channels in.
        outgoing: Channels out.

    Example:
        >>> vss_kernels.nn.ConvNorm(3, 1, 2).layer().weight.shape
        torch.Size([2, 1, 3, 3])
    """

    keeps_precision = True  # autocast leaves these parameters as they are, dozens and all tiny

    def __init__(self, kernel: int, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, outgoing, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(1, outgoing, eps=NORM_EPSILON)

    def layer(self) -> ConvNormLayer:
        """Returns the parameters as the operator takes them."""
        conv, norm = self._modules["conv"], self._modules["norm"]
        assert conv is not None
        assert norm is not None
        return ConvNormLayer(
            _parameter(conv, "weight"), _parameter(conv, "bias"),
            _parameter(norm, "weight"), _parameter(norm, "bias"),
        )  # fmt: skip


class AffinityAggregation(nn.Module):
    """The layers of :func:`vss_kernels.aggregate_affinity` as a module.

    Args:
        layers: Sizes of the layers of the five chains.

    Raises:
        ValueError: There are not five chains, or a chain is empty or holds no sizes of layers.

    Example:
        >>> layers = vss_kernels.nn.AggregationLayers(*[[(3, 1, 1)]] * 5)
        >>> aggregation = vss_kernels.nn.AffinityAggregation(layers)
        >>> maps = [torch.randn(6, 4 * scale, 5 * scale) for scale in (1, 2, 4)]
        >>> aggregation(*maps).shape
        torch.Size([6, 16, 20])
    """

    def __init__(self, layers: AggregationLayers) -> None:
        super().__init__()
        chains = _check_layers(layers)
        self.coarse = _build(chains.coarse)
        self.middle = _build(chains.middle)
        self.fine = _build(chains.fine)
        self.coarse_to_middle = _build(chains.coarse_to_middle)
        self.middle_to_fine = _build(chains.middle_to_fine)
        self._last: tuple[list[nn.Parameter], AggregationWeights] | None = None

    def weights(self) -> AggregationWeights:
        """Returns the parameters as the operator takes them."""
        parameters = None if torch.compiler.is_compiling() else self._find_parameters()
        last = self._last
        if parameters is not None and last is not None and all(map(is_, parameters, last[0])):
            return last[1]  # a model has the same dozens at every step
        weights = AggregationWeights(
            _layers(self.coarse),
            _layers(self.middle),
            _layers(self.fine),
            _layers(self.coarse_to_middle),
            _layers(self.middle_to_fine),
        )
        self._last = None if parameters is None else (parameters, weights)
        return weights

    def _find_parameters(self) -> list[nn.Parameter] | None:
        """All parameters, or ``None`` if something else stands in the place of one.

        Looked up directly, since ``nn.Module`` searches for each.
        """
        found: list[Any] = []
        modules = self._modules
        try:
            for name in AggregationLayers._fields:
                for layer in modules[name]._modules.values():  # type: ignore[union-attr]
                    conv, norm = layer._modules["conv"], layer._modules["norm"]  # type: ignore[union-attr]
                    for parameters in (conv._parameters, norm._parameters):  # type: ignore[union-attr]
                        found += (parameters["weight"], parameters["bias"])
        except KeyError:
            return None
        return found if all(map(_is_parameter, found)) else None

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Maps (M,h,w), (M,2h,2w) and (M,4h,4w) to the aggregated ones (M,4h,4w)."""
        return aggregate_affinity(coarse, middle, fine, self.weights())


def _check_layers(layers: Sequence[Chain]) -> AggregationLayers:
    """Checks the sizes of layers, which may come as lists from a file."""
    if len(layers) != len(AggregationLayers._fields):
        raise ValueError(
            f"AffinityAggregation: layers must hold {len(AggregationLayers._fields)} chains "
            f"({', '.join(AggregationLayers._fields)}), got {len(layers)}"
        )
    chains = AggregationLayers(*layers)
    for name, chain in chains._asdict().items():
        sizes = [size for layer in chain for size in layer]
        if not chain or any(len(layer) != 3 for layer in chain) or min(sizes) < 1:
            raise ValueError(
                f"AffinityAggregation: layers.{name} must hold at least one layer of (kernel, "
                f"incoming channels, outgoing channels), all positive, got {chain!r}"
            )
    return chains


def _build(chain: Chain) -> nn.ModuleList:
    return nn.ModuleList([ConvNorm(*layer) for layer in chain])


def _parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter, or what a parametrization makes in its place.

    Looked up directly where it is one: a model has dozens, and ``nn.Module`` searches for each.
    """
    parameter = module._parameters.get(name)
    return getattr(module, name) if parameter is None else parameter


def _is_parameter(value: object) -> bool:
    return isinstance(value, nn.Parameter)


def _layers(chain: nn.ModuleList) -> tuple[ConvNormLayer, ...]:
    return tuple(module.layer() for module in chain)  # type: ignore[operator]


def relate(
    projected_target: Sequence[Tensor],
    projected_references: Sequence[Tensor],
    target_sizes: Sequence[tuple[int, int]],
    weights: AggregationWeights,
    num_selected: int,
    top: int,
) -> tuple[Tensor, Tensor]:
    """Chooses tokens and computes their refined affinity from projected tokens.

    Args:
        projected_target: Tokens (B, h_s * w_s, C_s) at 1/8, 1/16 and 1/32.
        projected_references: Tokens (B, R, N, C_s) of the same stages, all on the 1/32 grid.
        target_sizes: Height and width of the target at the three scales; each scale has twice the
            sides of the next.
        weights: The layers of the refinement.
        num_selected: Number S of tokens kept of each reference frame.
        top: Number of target positions that vote for a token; all of them if there are fewer.

    Returns:
        The affinity before the softmax, (B, R, S, Q) with Q target tokens at 1/8, and the positions
        of the kept tokens (B, R, S).
    """
    coarse_target = projected_target[-1]
    # A tiny frame has fewer target positions than voters; then all of them vote.
    top = min(top, coarse_target.shape[1])
    index = select_tokens(coarse_target, projected_references[-1], num_selected, top)
    batch, frames, selected = index.shape
    maps = batch * frames * selected
    fine, middle, coarse = (
        masked_affinity(target, reference, index).view(maps, *size)  # from (B, R, S, Q_s)
        for target, reference, size in zip(
            projected_target, projected_references, target_sizes, strict=True
        )
    )
    refined = aggregate_affinity(coarse, middle, fine, weights)  # (B*R*S, h_8, w_8)
    height, width = target_sizes[0]
    return refined.view(batch, frames, selected, height * width), index


class RelationAffinity(nn.Module):
    """The refined affinity of a target frame with the kept tokens of each reference frame.

    Every list runs over the scales 1/8, 1/16, 1/32, in this order (MRCFA, Sun et al., ECCV 2022).

    Args:
        dims: Channels of the features at 1/8, 1/16 and 1/32.
        layers: Sizes of the layers that refine and aggregate the affinity.
        keep: Fraction of each reference frame's tokens to keep, in (0, 1]; ``int(keep * N)`` of N
            tokens are kept, at least one.
        top: Number of target positions that vote for a token; all of them if there are fewer.

    Raises:
        ValueError: ``dims`` are not three, ``layers`` do not fit or ``keep`` is out of range.

    Example:
        >>> layers = vss_kernels.nn.AggregationLayers(*[[(3, 1, 1)]] * 5)
        >>> relation = vss_kernels.nn.RelationAffinity((8, 16, 32), layers, keep=0.5)
        >>> scales = [(8, 4), (16, 2), (32, 1)]  # channels, and how much finer than 1/32
        >>> target = [torch.randn(1, c, 4 * scale, 6 * scale) for c, scale in scales]
        >>> references = [torch.randn(1, 3, c, 4, 6) for c, _ in scales]
        >>> affinity, index = relation(target, references)
        >>> affinity.shape, index.shape  # 12 of 24 tokens kept, 384 target tokens
        (torch.Size([1, 3, 12, 384]), torch.Size([1, 3, 12]))
    """

    def __init__(
        self, dims: Sequence[int], layers: AggregationLayers, keep: float, top: int = 5
    ) -> None:
        super().__init__()
        if len(dims) != 3:
            raise ValueError(
                f"RelationAffinity: dims must be three sizes (1/8, 1/16, 1/32), got {tuple(dims)}"
            )
        if not 0 < keep <= 1:
            raise ValueError(f"RelationAffinity: keep must be in (0, 1], got {keep}")
        self.aggregation = AffinityAggregation(layers)
        self.keep = keep
        self.top = top
        self.target_projections = nn.ModuleList([TokenLinear(dim, dim) for dim in dims])
        self.reference_projections = nn.ModuleList([TokenLinear(dim, dim) for dim in dims])

    def num_selected(self, tokens: int) -> int:
        """Returns how many of a reference frame's tokens are kept."""
        return max(1, int(self.keep * tokens))

    def project_target(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Projects the target's features.

        Args:
            maps: Features (B, C_s, h_s, w_s) at the three scales.

        Returns:
            Tokens (B, h_s * w_s, C_s) at the three scales.
        """
        return [
            projection(scale.flatten(2).mT)  # (B, Q_s, C_s)
            for projection, scale in zip(self.target_projections, maps, strict=True)
        ]

    def project_references(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Projects the references' features.

        Args:
            maps: Features (B, R, C_s, h, w) of the three scales, all on the 1/32 grid.

        Returns:
            Tokens (B, R, N, C_s) of the three scales, N = h * w.
        """
        return [
            projection(scale.flatten(3).mT)  # (B, R, N, C_s)
            for projection, scale in zip(self.reference_projections, maps, strict=True)
        ]

    def relate(
        self,
        projected_target: Sequence[Tensor],
        projected_references: Sequence[Tensor],
        target_sizes: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Chooses tokens and computes their refined affinity from projected tokens.

        Args:
            projected_target: Result of :meth:`project_target`.
            projected_references: Result of :meth:`project_references`.
            target_sizes: Height and width of the target at the three scales; each scale has twice
                the sides of the next.

        Returns:
            The affinity before the softmax, (B, R, S, Q) with Q target tokens at 1/8, and the
            positions of the kept tokens (B, R, S).
        """
        tokens = projected_references[-1].shape[2]
        return relate(
            projected_target,
            projected_references,
            target_sizes,
            self.aggregation.weights(),
            self.num_selected(tokens),
            self.top,
        )

    def forward(
        self, target_maps: Sequence[Tensor], reference_maps: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Relates the target's features to the references'.

        Args:
            target_maps: Features (B, C_s, h_s, w_s) at 1/8, 1/16 and 1/32.
            reference_maps: Features (B, R, C_s, h, w) of the same stages, all on the 1/32 grid.

        Returns:
            The affinity before the softmax, (B, R, S, Q) with Q target tokens at 1/8, and the
            positions of the kept tokens (B, R, S).
        """
        sizes = [(scale.shape[-2], scale.shape[-1]) for scale in target_maps]
        return self.relate(
            self.project_target(target_maps), self.project_references(reference_maps), sizes
        )
