"""The CFFM head: coarse-to-fine feature mining across frames (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vss_kernels._runtime import cpu_inference
from vss_kernels.nn import FocalBlock, resize_pixel_logits
from vss_kernels.nn.resizing import resize
from vss_models.heads.classifier import Classifier
from vss_models.heads.segformer import (
    ClipLogits,
    FrameState,
    SegFormerHead,
    split_clips,
)


class CFFMHead(SegFormerHead):
    """Refines the target's features with focal blocks over coarsely to finely pooled references.

    Args:
        channels: Channels of the four feature levels.
        num_classes: K.
        focal_blocks: Number of blocks, one after the other.
        focal_heads: Attention heads; must divide `embed_dim`.
        reference_levels: Per reference, oldest first: cells per window side it is pooled to.
            R is their number; released weights have (1, 2, 3).
        reference_kernels: Per reference: odd side, in cells, of the area that a window attends to.
        embed_dim: Channels E of the fused map.
        dropout: Probability of dropping a whole channel before a classifier, in training.
        fusion: "projected" (fast) or "concatenate" (the definition); the same result.

    Raises:
        ValueError: If levels and kernels differ in number, are empty or out of range, or the heads
            do not divide `embed_dim`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        focal_blocks: int = 2,
        focal_heads: int = 8,
        reference_levels: Sequence[int] = (1, 2, 3),
        reference_kernels: Sequence[int] = (7, 5, 3),
        embed_dim: int = 256,
        dropout: float = 0.1,
        fusion: str = "projected",
    ) -> None:
        super().__init__(channels, num_classes, embed_dim, dropout, fusion)
        if focal_heads < 1 or embed_dim % focal_heads:
            raise ValueError(
                f"focal_heads must divide embed_dim, got {focal_heads} heads for {embed_dim}"
            )
        if focal_blocks < 1 or not reference_levels:
            raise ValueError(
                "focal_blocks must be positive and reference_levels not empty, got "
                f"{focal_blocks} and {tuple(reference_levels)}"
            )
        self.num_references = len(reference_levels)
        self.blocks = nn.ModuleList(
            FocalBlock(
                embed_dim,
                focal_heads,
                reference_levels=tuple(reference_levels),
                reference_kernels=tuple(reference_kernels),
            )
            for _ in range(focal_blocks)
        )
        self.target_classifier = Classifier(2 * embed_dim, num_classes)

    def forward(self, features: Sequence[Tensor], num_clips: int) -> Tensor | ClipLogits:
        """Segments clips; see `SegFormerHead.forward`. M = 1 target prediction in training."""
        fused = self.fusion(features)
        # Before the blocks, so that on the way back it comes after them: its gradient is the
        # largest map, and what the blocks keep need not lie beside it.
        per_frame = self.classify(fused) if self.training else None
        fused_at_8 = _halve(fused)
        clips = split_clips(_channels_last(fused_at_8), num_clips)
        target = split_clips(fused_at_8, num_clips)[:, -1]
        logits = self._decode(target, clips[:, -1], clips[:, :-1], fused.shape[-2:])
        if per_frame is None:
            return logits
        return ClipLogits(split_clips(per_frame, num_clips), logits.unsqueeze(1))

    @torch.no_grad()
    def start_as_per_frame(self) -> None:
        """See `SegFormerHead.start_as_per_frame`: refined features start without weight."""
        embed_dim = self.classifier.in_channels
        self.target_classifier.weight[:, :embed_dim] = self.classifier.weight
        self.target_classifier.weight[:, embed_dim:] = 0.0
        if self.target_classifier.bias is not None and self.classifier.bias is not None:
            self.target_classifier.bias.copy_(self.classifier.bias)

    def encode_frame(self, features: Sequence[Tensor]) -> FrameState:
        """Computes the state of N frames: their fused features, at 1/4 and at 1/8."""
        fused, fused_at_8 = None, self.fusion.halved(features)
        if fused_at_8 is None:
            fused = self.fusion(features)
            fused_at_8 = _halve(fused)
        # Every block normalises the references again, which needs adjacent channels.
        rows = _channels_last(fused_at_8)
        return FrameState(features, fused, fused_at_8, rows.permute(0, 3, 1, 2))

    def decode(self, frame: FrameState, references: Sequence[Tensor]) -> Tensor:
        """Returns the logits (N, K, H/4, W/4) of a frame given R earlier ones, oldest first.

        Args:
            frame: State of the target frames.
            references: Fused features (N, E, H/8, W/8) of the earlier frames.

        Raises:
            ValueError: If there are not R references.
        """
        if len(references) != self.num_references:
            raise ValueError(
                f"references must hold {self.num_references} frames, got {len(references)}"
            )
        stacked = torch.stack([_channels_last(state) for state in references], 1)
        return self.decode_stacked(frame, stacked.permute(0, 1, 4, 2, 3))

    def decode_stacked(self, frame: FrameState, references: Tensor) -> Tensor:
        """See `SegFormerHead.decode_stacked`."""
        target = _channels_last(frame.reference)
        rows = references.permute(0, 1, 3, 4, 2).contiguous()
        return self._decode(frame.target, target, rows, frame.size)

    def _decode(
        self, target: Tensor, refined: Tensor, references: Tensor, size: Sequence[int]
    ) -> Tensor:
        """Decodes target maps into logits (B, K, *size).

        Args:
            target: (B, E, h, w).
            refined: The same with the channels last, (B, h, w, E): what the blocks start from.
            references: (B, R, h, w, E).
            size: Height and width of the logits.
        """
        for block in self.blocks:
            refined = block(refined, references)
        both = torch.cat([target, refined.permute(0, 3, 1, 2)], dim=1)
        last = self.target_classifier
        if not self.training and cpu_inference.is_cpu_inference(both, last.weight):
            return resize_pixel_logits(last.classify_pixels(both), size)
        return resize(last(both, self.dropout), size)


def _halve(fused: Tensor) -> Tensor:
    """Resizes (N, E, H/4, W/4) to half its sides, odd ones rounded down.

    The encoder's own 1/8 grid rounds up; the published program does not use that grid here.
    """
    height, width = fused.shape[-2:]
    return resize(fused, (height // 2, width // 2))


def _channels_last(maps: Tensor) -> Tensor:
    """Returns (N, E, h, w) as (N, h, w, E), contiguous; no copy where they are stored so."""
    return maps.permute(0, 2, 3, 1).contiguous()


__all__ = ["CFFMHead"]
