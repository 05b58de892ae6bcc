"""A video segmenter: an encoder and a head over a clip."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from vss_models.heads.segformer import ClipLogits, FrameState, SegFormerHead

MIN_SIDE = 32
LONGEST_NAME = 500
"""Letters of a class name: more than any has, and few enough to draw."""
LONGEST_SIDE = 65_535
PRECISIONS = ("float32", "bfloat16")
"""What a network computes in; see :class:`vss_models.inference.frame_program.FrameProgram`."""


@dataclass(frozen=True)
class ModelConfig:
    """What `create_model` was called with; enough to build the model again.

    Attributes:
        name: Model name, such as "mrcfa_b1".
        num_classes: Number of classes.
        overrides: Settings that differ from the name's own, in plain types.
    """

    name: str
    num_classes: int
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on, so that it can be used without its data set.

    Training sets it and checkpoints keep it. An entry is None where it is not known. Sequences may
    be lists; they are kept as tuples.

    Attributes:
        class_names: Names of the K classes.
        class_colours: Their colours (red, green, blue), 0..255.
        reference_offsets: The frames the model looks back to, relative to the target, oldest first.
        frame_scale: (long edge, short edge) in pixels that evaluation frames are fitted into; empty
            if they keep their size.
        precision: What the network computed in, "float32" or "bfloat16" (under autocast).

    Raises:
        ValueError: If an entry is of another form than described.
    """

    class_names: tuple[str, ...] | None = None
    class_colours: tuple[tuple[int, int, int], ...] | None = None
    reference_offsets: tuple[int, ...] | None = None
    frame_scale: tuple[int, int] | tuple[()] | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        checks: dict[str, tuple[Callable[[Any], bool], str]] = {
            "class_names": (_are_names, f"strings of 1 to {LONGEST_NAME} letters"),
            "class_colours": (_are_colours, "triples of integers 0..255"),
            "reference_offsets": (_are_offsets, "ascending negative integers"),
            "frame_scale": (_is_scale, f"two integers 1..{LONGEST_SIDE}, or empty"),
        }
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(
                f"precision must be one of {PRECISIONS}, got {reprlib.repr(self.precision)}"
            )
        for name, (is_valid, expected) in checks.items():
            value = _as_tuples(getattr(self, name))
            if value is None:
                continue
            if not (isinstance(value, tuple) and is_valid(value)):
                raise ValueError(f"{name} must be {expected}, got {reprlib.repr(value)}")
            object.__setattr__(self, name, value)

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> TrainedOn:
        """Picks the entries out of a checkpoint's description; those it lacks are None."""
        return cls(**{entry.name: description.get(entry.name) for entry in fields(cls)})

    def check_fits(self, num_classes: int, num_references: int) -> None:
        """Raises ValueError unless there are as many classes and references as a model has."""
        for name, expected in (
            ("class_names", num_classes),
            ("class_colours", num_classes),
            ("reference_offsets", num_references),
        ):
            value = getattr(self, name)
            if value is not None and len(value) != expected:
                raise ValueError(f"{name} must have {expected} entries, got {len(value)}")


class VideoSegmentor(nn.Module):
    """Runs an encoder on every frame of a clip and a head over the clip.

    Args:
        backbone: Encoder with `channels`; images (N, 3, H, W) to four maps at strides 4 to 32.
        head: Segmentation head for those channels.
        config: How `create_model` built this model; None for a model put together by hand.

    Attributes:
        num_classes: K.
        num_references: R, frames before the target in a clip; 0 for a per-frame model.
        trained_on: What it was trained on.
        encode_together: Whether the frames of a clip pass the encoder as one batch in evaluation.
            False passes them one by one: then the logits are those of
            :class:`vss_models.inference.streaming.StreamingSegmenter` bit for bit. True saves
            launches and rounds differently. None, the default, is False on a CPU, where a batch
            gains nothing, and True on other devices and in compiled and exported programs.
    """

    def __init__(
        self, backbone: nn.Module, head: SegFormerHead, config: ModelConfig | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.config = config
        self.num_classes = head.num_classes
        self.num_references = head.num_references
        self.trained_on = TrainedOn()
        self.encode_together: bool | None = None

    def forward(self, clip: Tensor) -> Tensor | ClipLogits:
        """Segments the last frame of each clip with the help of the others.

        Args:
            clip: (B, T, 3, H, W) normalised frames, oldest first, the target last. T is R + 1; a
                per-frame model takes any T.

        Returns:
            In evaluation the target's logits (B, K, H/4, W/4). In training `ClipLogits`.

        Raises:
            TypeError: If the clip is no floating-point tensor.
            ValueError: If its shape does not fit.
        """
        check_images("clip", clip, "(B, T, 3, H, W)")
        num_clips, num_frames = clip.shape[:2]
        if num_frames == 0 or (self.num_references and num_frames != self.num_references + 1):
            raise ValueError(
                f"clip must hold {self.num_references + 1} frames ({self.num_references} "
                f"references, oldest first, then the target), got {num_frames}; for a single frame "
                "use model.single_frame(images)"
            )
        self.check_size(*clip.shape[-2:])
        if self.num_references == 0 and not self.training:
            clip = clip[:, -1:]
        if self.training or self._encodes_together(clip):
            return self.head(self._features(clip.flatten(0, 1)), num_clips)
        *references, target = (self.encode_frame(frames) for frames in clip.unbind(1))
        return self.decode(target, [frame.reference for frame in references])

    def single_frame(self, images: Tensor) -> Tensor:
        """Returns the per-frame logits (N, K, H/4, W/4) of images (N, 3, H, W)."""
        check_images("images", images, "(N, 3, H, W)")
        return self.head.classify(self.head.fusion(self._features(images)))

    def encode_frame(self, images: Tensor) -> FrameState:
        """Computes once, for N frames (N, 3, H, W), all that decoding with them needs."""
        check_images("images", images, "(N, 3, H, W)")
        self.check_size(*images.shape[-2:])
        return self.head.encode_frame(self._features(images))

    def decode(self, frame: FrameState, references: Sequence[Any]) -> Tensor:
        """Segments a frame given the `reference` states of earlier frames.

        Args:
            frame: State of the N target frames.
            references: `FrameState.reference` of R earlier frames, oldest first.

        Returns:
            Logits (N, K, H/4, W/4), the same as of the clip of these frames.
        """
        return self.head.decode(frame, references)

    def _encodes_together(self, clip: Tensor) -> bool:
        if self.encode_together is not None:
            return self.encode_together
        return clip.device.type != "cpu" or torch.compiler.is_compiling()

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        # Convolutions round differently for frames that are stored with the channels last.
        return self.backbone(images.contiguous())

    def check_size(self, height: int, width: int, name: str = "height and width") -> None:
        """Checks that the model takes frames of a size.

        Args:
            height: Rows of pixels.
            width: Columns of pixels.
            name: What the error calls the two.

        Raises:
            ValueError: If it does not.
        """
        divisor = self.head.size_divisor
        if height % divisor or width % divisor:
            raise ValueError(
                f"{name} must be multiples of {divisor} for this model, got {height} x {width}; "
                "resize or pad the frames"
            )


def check_images(name: str, images: Tensor, layout: str) -> None:
    """Raises unless `images` is a floating-point tensor of the layout, such as "(N, 3, H, W)"."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name} must be a normalised floating-point tensor {layout}, got {kind}")
    if images.dim() != layout.count(",") + 1 or images.shape[-3] != 3:
        raise ValueError(f"{name} must have the shape {layout}, got {tuple(images.shape)}")
    if min(images.shape[-2:]) < MIN_SIDE:
        raise ValueError(
            f"{name} must be at least {MIN_SIDE} pixels high and wide, got {tuple(images.shape)}"
        )


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _are_names(value: tuple[Any, ...]) -> bool:
    return all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in value)


def _are_colours(value: tuple[Any, ...]) -> bool:
    return all(
        isinstance(colour, tuple) and len(colour) == 3 and _are_integers(colour, 0, 255)
        for colour in value
    )


def _are_offsets(value: tuple[Any, ...]) -> bool:
    return _are_integers(value, -sys.maxsize, -1) and list(value) == sorted(set(value))


def _is_scale(value: tuple[Any, ...]) -> bool:
    return len(value) in (0, 2) and _are_integers(value, 1, LONGEST_SIDE)


def _are_integers(value: tuple[Any, ...], lowest: int, highest: int) -> bool:
    # A bool is an int to Python.
    return all(type(number) is int and lowest <= number <= highest for number in value)


__all__ = ["ModelConfig", "TrainedOn", "VideoSegmentor"]
