"""MRCFA's relation between a target frame and its references, as modules around the operators."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vss_kernels.aggregate_affinity import (
    NORM_EPSILON,
    AggregationWeights,
    ConvNormLayer,
    aggregate_affinity,
)
from vss_kernels.masked_affinity import masked_affinity
from vss_kernels.select_tokens import select_tokens

VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")

Chain = tuple[tuple[int, int, int], ...]
"""Layers of a chain as (kernel, incoming channels, outgoing channels)."""

_ONE_LAYER: dict[str, Chain] = {
    "coarse": ((3, 1, 1),),
    "middle": ((5, 1, 1),),
    "fine": ((5, 1, 1),),
    "coarse_to_middle": ((3, 1, 1),),
    "middle_to_fine": ((3, 1, 1),),
}
_TWO_LAYERS: dict[str, Chain] = {
    "coarse": ((3, 1, 1), (3, 1, 2)),
    "middle": ((3, 1, 1), (3, 1, 2)),
    "fine": ((5, 1, 1), (3, 1, 2)),
    "coarse_to_middle": ((3, 2, 2), (3, 2, 2)),
    "middle_to_fine": ((3, 2, 2), (3, 2, 1)),
}


def _check_variant(owner: str, variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"{owner}: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")


def kept_share(variant: str) -> float:
    """Returns the share of each reference frame's tokens that a published variant keeps.

    Raises:
        ValueError: The variant is unknown.
    """
    _check_variant("kept_share", variant)
    return 0.8 if variant == "b0" else 0.5


class ConvNorm(nn.Module):
    """The parameters of a convolution and the GroupNorm (one group) behind it.

    Args:
        kernel: Side of the convolution's kernel, odd.
        incoming: Channels in.
        outgoing: Channels out.
    """

    def __init__(self, kernel: int, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, outgoing, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(1, outgoing, eps=NORM_EPSILON)

    def layer(self) -> ConvNormLayer:
        """Returns the parameters as the operator takes them."""
        conv, norm = self.conv, self.norm
        bias = conv.bias
        assert bias is not None
        return ConvNormLayer(conv.weight, bias, norm.weight, norm.bias)


class AffinityAggregation(nn.Module):
    """The layers of :func:`vss_kernels.aggregate_affinity` in a published size.

    Args:
        variant: ``"b0"`` to ``"b5"``; ``"b1"`` has two layers in each chain, the others one.

    Raises:
        ValueError: The variant is unknown.
    """

    def __init__(self, variant: str = "b1") -> None:
        super().__init__()
        _check_variant("AffinityAggregation", variant)
        chains = _TWO_LAYERS if variant == "b1" else _ONE_LAYER
        self.variant = variant
        self.coarse = _build(chains["coarse"])
        self.middle = _build(chains["middle"])
        self.fine = _build(chains["fine"])
        self.coarse_to_middle = _build(chains["coarse_to_middle"])
        self.middle_to_fine = _build(chains["middle_to_fine"])

    def weights(self) -> AggregationWeights:
        """Returns the parameters as the operator takes them."""
        return AggregationWeights(
            _layers(self.coarse),
            _layers(self.middle),
            _layers(self.fine),
            _layers(self.coarse_to_middle),
            _layers(self.middle_to_fine),
        )

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Maps (M,h,w), (M,2h,2w) and (M,4h,4w) to the aggregated ones (M,4h,4w)."""
        return aggregate_affinity(coarse, middle, fine, self.weights())


def _build(chain: Chain) -> nn.ModuleList:
    return nn.ModuleList([ConvNorm(*layer) for layer in chain])


def _layers(chain: nn.ModuleList) -> tuple[ConvNormLayer, ...]:
    return tuple(module.layer() for module in chain)  # type: ignore[operator]


class RelationAffinity(nn.Module):
    """The refined affinity of a target frame with the kept tokens of each reference frame.

    Every list runs over the scales 1/8, 1/16, 1/32, in this order (MRCFA, Sun et al., ECCV 2022).

    Args:
        dims: Channels of the features at 1/8, 1/16 and 1/32.
        variant: ``"b0"`` to ``"b5"``: layers of the aggregation and, unless ``keep`` is given, the
            share of tokens kept.
        keep: Share of each reference frame's tokens to keep, in (0, 1]; ``int(keep * N)`` of N
            tokens are kept, at least one.
        top: Number of target positions that vote for a token; all of them if there are fewer.

    Raises:
        ValueError: The variant is unknown, ``dims`` are not three or ``keep`` is out of range.
    """

    def __init__(
        self,
        dims: Sequence[int],
        variant: str = "b1",
        keep: float | None = None,
        top: int = 5,
    ) -> None:
        super().__init__()
        if len(dims) != 3:
            raise ValueError(
                f"RelationAffinity: dims must be three sizes (1/8, 1/16, 1/32), got {tuple(dims)}"
            )
        self.aggregation = AffinityAggregation(variant)
        self.keep = kept_share(variant) if keep is None else keep
        if not 0 < self.keep <= 1:
            raise ValueError(f"RelationAffinity: keep must be in (0, 1], got {keep}")
        self.top = top
        self.target_projections = nn.ModuleList([nn.Linear(dim, dim) for dim in dims])
        self.reference_projections = nn.ModuleList([nn.Linear(dim, dim) for dim in dims])

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
        coarse_target = projected_target[-1]
        # A tiny frame has fewer target positions than voters; then all of them vote.
        top = min(self.top, coarse_target.shape[1])
        index = select_tokens(
            coarse_target, projected_references[-1], self.num_selected(tokens), top
        )
        fine, middle, coarse = (
            masked_affinity(target, reference, index)  # (B, R, S, Q_s)
            .flatten(0, 2)
            .unflatten(1, size)  # (B*R*S, h_s, w_s)
            for target, reference, size in zip(
                projected_target, projected_references, target_sizes, strict=True
            )
        )
        refined = self.aggregation(coarse, middle, fine)  # (B*R*S, h_8, w_8)
        return refined.flatten(1).unflatten(0, index.shape), index

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
