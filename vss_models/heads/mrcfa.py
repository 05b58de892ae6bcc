"""The MRCFA head: mining relations among cross-frame affinities (ECCV 2022, arXiv 2207.10436)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vss_kernels import attend_selected
from vss_kernels._runtime import cpu_inference
from vss_kernels.nn import AggregationLayers, RelationAffinity, resize_pixel_logits, token_linear
from vss_kernels.nn.resizing import resize
from vss_models.heads.classifier import Classifier, classify_each
from vss_models.heads.segformer import (
    ClipLogits,
    FrameState,
    SegFormerHead,
    split_clips,
)
from vss_models.narrowing import narrowed


class RelationTarget(NamedTuple):
    """What decoding needs of N target frames. Scales in the order 1/8, 1/16, 1/32.

    Attributes:
        queries: Three projected maps (N, Q_s, C_s), Q_s positions each.
        sizes: Their heights and widths.
        fused: (N, E, H/8, W/8) fused features.
    """

    queries: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]
    fused: Tensor


class RelationReference(NamedTuple):
    """What decoding needs of reference frames: n tokens on the 1/32 grid, (...) = N or B, R.

    Attributes:
        keys: Three projected maps (..., n, C_s) of the features at 1/8, 1/16 and 1/32.
        values: (..., n, E) from the fused features.
    """

    keys: tuple[Tensor, ...]
    values: Tensor


class MRCFAHead(SegFormerHead):
    """Segments the target with values of its references, weighted by refined affinities.

    Args:
        channels: Channels of the four feature levels; the last three enter the affinities.
        num_classes: K.
        aggregation_layers: Layers that refine and aggregate the affinities.
        keep: Fraction of each reference frame's tokens that are kept.
        num_references: R. Released weights have 3: each reference has its own decoder.
        embed_dim: Channels E of the fused map.
        dropout: Probability of dropping a whole channel before a classifier, in training.
        fusion: "projected" (fast) or "concatenate" (the definition); the same result.

    Raises:
        ValueError: If `num_references` is not positive.
    """

    size_divisor = 32

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        aggregation_layers: AggregationLayers,
        keep: float,
        num_references: int = 3,
        embed_dim: int = 256,
        dropout: float = 0.1,
        fusion: str = "projected",
    ) -> None:
        super().__init__(channels, num_classes, embed_dim, dropout, fusion)
        if num_references < 1:
            raise ValueError(f"num_references must be at least 1, got {num_references}")
        self.num_references = num_references
        _, at_8, at_16, at_32 = channels
        self.reference_reductions = nn.ModuleList(
            [nn.Conv2d(at_8, at_8, 4, stride=4), nn.Conv2d(at_16, at_16, 2, stride=2)]
        )
        self.value = nn.Conv2d(embed_dim, embed_dim, 4, stride=4)
        self.relation = RelationAffinity((at_8, at_16, at_32), aggregation_layers, keep)
        self.decoders = nn.ModuleList(
            Classifier(embed_dim, num_classes) for _ in range(num_references + 1)
        )

    def forward(self, features: Sequence[Tensor], num_clips: int) -> Tensor | ClipLogits:
        """Segments clips; see `SegFormerHead.forward`. M = R + 1 target predictions in training."""
        fused = self.fusion(features)
        # Before the relation, so that on the way back it comes after it: its gradient is the
        # largest map, and what the relation keeps need not lie beside it.
        per_frame = self.classify(fused) if self.training else None
        fused_at_8 = resize(fused, features[1].shape[-2:])
        clips = [split_clips(feature, num_clips) for feature in (*features[1:], fused_at_8)]
        target = self._encode_target([clip[:, -1] for clip in clips[:3]], clips[3][:, -1])
        earlier = [clip[:, :-1].flatten(0, 1) for clip in clips]
        references = self._encode_reference(earlier[:3], earlier[3])
        references = RelationReference(
            tuple(split_clips(keys, num_clips) for keys in references.keys),
            split_clips(references.values, num_clips),
        )
        size = fused.shape[-2:]
        if per_frame is None:
            return self._decode_final(target, references, size)
        affinity, index = self._relate(target, references)
        answers = attend_selected(affinity, references.values, index)
        *decoders, last = cast(Iterable[Classifier], self.decoders)
        per_reference = classify_each(decoders, answers.mT, self.dropout)
        final = last.classify(self._summary(answers, target), self.dropout)
        logits = torch.cat([per_reference, final.unsqueeze(1)], dim=1)
        maps = resize(logits.flatten(0, 1).unflatten(2, target.sizes[0]), size)
        return ClipLogits(split_clips(per_frame, num_clips), split_clips(maps, num_clips))

    @torch.no_grad()
    def start_as_per_frame(self) -> None:
        """See `SegFormerHead.start_as_per_frame`: values start at zero."""
        nn.init.zeros_(self.value.weight)
        if self.value.bias is not None:
            nn.init.zeros_(self.value.bias)
        for decoder in self.decoders:
            decoder.load_state_dict(self.classifier.state_dict())

    def encode_frame(self, features: Sequence[Tensor]) -> FrameState:
        """Computes the state of N frames from their four feature levels (N, C_i, H_i, W_i)."""
        fused, fused_at_8 = None, self.fusion.halved(features)
        if fused_at_8 is None:
            fused = self.fusion(features)
            fused_at_8 = resize(fused, features[1].shape[-2:])
        target = self._encode_target(features[1:], fused_at_8)
        reference = self._encode_reference(features[1:], fused_at_8)
        return FrameState(features, fused, target, reference)

    def decode(self, frame: FrameState, references: Sequence[RelationReference]) -> Tensor:
        """Returns the logits (N, K, H/4, W/4) of a frame given R earlier ones, oldest first.

        Raises:
            ValueError: If there are not R references.
        """
        if len(references) != self.num_references:
            raise ValueError(
                f"references must hold {self.num_references} frames, got {len(references)}"
            )
        stacked = RelationReference(
            tuple(torch.stack(keys, 1) for keys in zip(*(r.keys for r in references), strict=True)),
            torch.stack([reference.values for reference in references], 1),
        )
        return self.decode_stacked(frame, stacked)

    def decode_stacked(self, frame: FrameState, references: RelationReference) -> Tensor:
        """See `SegFormerHead.decode_stacked`."""
        return self._decode_final(frame.target, references, frame.size)

    def _encode_target(self, features: Sequence[Tensor], fused_at_8: Tensor) -> RelationTarget:
        sizes = tuple((feature.shape[-2], feature.shape[-1]) for feature in features)
        queries = tuple(self.relation.project_target(list(features)))
        return RelationTarget(queries, sizes, fused_at_8)

    def _encode_reference(
        self, features: Sequence[Tensor], fused_at_8: Tensor
    ) -> RelationReference:
        at_8, at_16, at_32 = features
        reduce_8, reduce_16 = self.reference_reductions
        maps = [reduce_8(at_8), reduce_16(at_16), at_32]
        keys = self.relation.project_references([grid.unsqueeze(1) for grid in maps])
        values = self.value(fused_at_8).flatten(2).transpose(1, 2)
        return RelationReference(tuple(key.squeeze(1) for key in keys), values)

    def _relate(
        self, target: RelationTarget, references: RelationReference
    ) -> tuple[Tensor, Tensor]:
        """The affinity of kept tokens with target positions at 1/8, and where they are."""
        return self.relation.relate(list(target.queries), list(references.keys), target.sizes)

    def _decode_final(
        self, target: RelationTarget, references: RelationReference, size: Sequence[int]
    ) -> Tensor:
        """Decodes with the last decoder into logits (B, K, *size), in evaluation."""
        last = cast(Classifier, self.decoders[-1])
        affinity, index = self._relate(target, references)
        if self.num_classes < references.values.shape[-1] and cpu_inference.is_cpu_inference(
            affinity, references.values, target.fused, last.weight
        ):
            rows = self._classify_first(affinity, references.values, index, target.fused)
            return resize_pixel_logits(rows.unflatten(1, target.sizes[0]), size)
        answers = attend_selected(affinity, references.values, index)
        logits = last.classify(self._summary(answers, target), self.dropout)
        return resize(logits.unflatten(2, target.sizes[0]), size)

    def _classify_first(
        self, affinity: Tensor, values: Tensor, index: Tensor, fused: Tensor
    ) -> Tensor:
        """Classifies the values before they are attended to, instead of the answers.

        Classifier, attention and mean are linear in the values. The product with the probabilities,
        a CPU's largest, then has as many columns as there are classes and not channels.

        Args:
            affinity: (B, R, S, Q).
            values: (B, R, n, E).
            index: (B, R, S).
            fused: The target's features, (B, E, h, w).

        Returns:
            Logits (B, Q, K).
        """
        last = cast(Classifier, self.decoders[-1])
        weight = narrowed(last.weight.flatten(1))
        classified = token_linear(values, weight / values.shape[1])
        rows = token_linear(fused.flatten(2).mT, weight, narrowed(cast(Tensor, last.bias)))
        for answer in attend_selected(affinity, classified, index).unbind(1):
            rows += answer
        return rows

    @staticmethod
    def _summary(answers: Tensor, target: RelationTarget) -> Tensor:
        """The target's features and what all references say of them, (B, E, Q)."""
        # The mean is of adjacent numbers as long as the answers are not turned into maps yet.
        return target.fused.flatten(2) + answers.mean(dim=1).mT


__all__ = ["MRCFAHead", "RelationReference", "RelationTarget"]
