"""What the demonstration makes, trains and compares."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("segformer", "mrcfa", "cffm")
"""The models that are compared; the first, which looks at one frame, is the baseline."""

NAMES = {"segformer": "SegFormer", "mrcfa": "MRCFA", "cffm": "CFFM"}


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and steps of the demonstration.

    Attributes:
        num_train: Training videos.
        num_val: Held-out videos.
        frames: Frames of each video.
        size: (height, width) of the frames, multiples of 32.
        crop: (height, width) of the training crops.
        batch_size: Targets a step: images for SegFormer, clips for the others.
        offsets: Frames of the references relative to the target, oldest first.
        first_steps: Training steps of the SegFormer that all models start from.
        steps: Training steps of every model from there on.
        street_frames: Frames of the video that is segmented at the end.
        street_size: (height, width) of that video.
        auxiliary_weight: Weight of the per-frame loss of MRCFA and CFFM. The published 0.5 suits
            long trainings; in a short one the per-frame part, which all else builds on, learns too
            little from it, most of all beside MRCFA's four decoders.
        seed: Seed of the data and of all trainings.

    Raises:
        ValueError: If a number of steps is not positive.
    """

    num_train: int = 24
    num_val: int = 6
    frames: int = 24
    size: tuple[int, int] = (192, 320)
    crop: tuple[int, int] = (128, 192)
    batch_size: int = 4
    offsets: tuple[int, ...] = (-3, -2, -1)
    first_steps: int = 900
    steps: int = 400
    street_frames: int = 45
    street_size: tuple[int, int] = (384, 640)
    auxiliary_weight: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("first_steps", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


__all__ = ["FAMILIES", "NAMES", "DemoSettings"]
