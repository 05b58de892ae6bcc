"""The per-frame SegFormer head, which the two temporal heads extend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from vss_models.heads.classifier import Classifier
from vss_models.heads.fusion import PyramidFusion


class ClipLogits(NamedTuple):
    """What a model returns in training mode. K classes, at 1/4 of the image.

    Attributes:
        per_frame: (B, T, K, h, w), each frame on its own.
        target: (B, M, K, h, w), M predictions of the last frame: one per reference and the final
            one for MRCFA, one for CFFM, none (M = 0) for SegFormer.
    """

    per_frame: Tensor
    target: Tensor


class FrameState(NamedTuple):
    """What a head computes once for a frame.

    Attributes:
        levels: The four feature levels (N, C_i, H_i, W_i).
        fused: (N, E, H/4, W/4), the fused features, which per-frame logits come from; None where
            decoding did not need them.
        target: What the head needs to decode this frame (type of the head's own).
        reference: What the head needs of this frame to decode later ones: keep only this.
    """

    levels: Sequence[Tensor]
    fused: Tensor | None
    target: Any
    reference: Any

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the logits."""
        return self.levels[0].shape[-2], self.levels[0].shape[-1]


class SegFormerHead(nn.Module):
    """All-MLP fusion and a 1x1 classifier; every frame on its own (SegFormer, section 3.2).

    Args:
        channels: Channels of the four feature levels.
        num_classes: K.
        embed_dim: Channels of the fused map.
        dropout: Probability of dropping a whole channel before a classifier, in training.
        fusion: "projected" (fast) or "concatenate" (the definition); the same result.
    """

    num_references = 0
    size_divisor = 1

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        dropout: float = 0.1,
        fusion: str = "projected",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fusion = PyramidFusion(channels, embed_dim, fusion)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(embed_dim, num_classes)

    def classify(self, fused: Tensor) -> Tensor:
        """Turns fused features (N, E, h, w) into per-frame logits (N, K, h, w)."""
        logits: Tensor = self.classifier(fused, self.dropout)
        return logits

    def classify_frame(self, frame: FrameState) -> Tensor:
        """Returns the per-frame logits (N, K, H/4, W/4) of frames that were encoded."""
        return self.classify(self.fusion(frame.levels) if frame.fused is None else frame.fused)

    def forward(self, features: Sequence[Tensor], num_clips: int) -> Tensor | ClipLogits:
        """Segments clips from the features of all their frames.

        Args:
            features: Four levels (B * T, C_i, H_i, W_i), the frames of a clip one after the other.
            num_clips: B.

        Returns:
            In evaluation the last frames' logits (B, K, H/4, W/4); in training `ClipLogits`.
        """
        fused = self.fusion(features)
        if not self.training:
            return self.classify(split_clips(fused, num_clips)[:, -1])
        per_frame = split_clips(self.classify(fused), num_clips)
        return ClipLogits(per_frame, per_frame[:, :0])

    def start_as_per_frame(self) -> None:
        """Sets weights so that the final prediction starts as that of the per-frame classifier.

        Heads that look at several frames override this: what they take from the references starts
        at zero, and every classifier as the per-frame one.
        """

    def encode_frame(self, features: Sequence[Tensor]) -> FrameState:
        """Computes the state of N frames from their four feature levels (N, C_i, H_i, W_i)."""
        return FrameState(features, self.fusion(features), None, None)

    def decode(self, frame: FrameState, references: Sequence[Any]) -> Tensor:
        """Returns the logits (N, K, H/4, W/4) of a frame; this head needs no references."""
        if references:
            raise ValueError(f"a per-frame head takes no references, got {len(references)}")
        return self.classify_frame(frame)

    def decode_stacked(self, frame: FrameState, references: Any) -> Tensor:
        """Does what `decode` does, given references that lie side by side.

        Args:
            frame: State of the N target frames.
            references: As one `FrameState.reference`, but that its tensors have a dimension for the
                R frames, oldest first, behind the first: (N, R, ...).
        """
        return self.decode(frame, [] if references is None else [references])


def split_clips(x: Tensor, num_clips: int) -> Tensor:
    """Views (B * T, ...) as (B, T, ...)."""
    return x.unflatten(0, (num_clips, -1))


__all__ = ["ClipLogits", "FrameState", "SegFormerHead"]
