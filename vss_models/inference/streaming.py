"""Segmentation of endless videos, frame after frame, with each frame encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vss_models.data.clips import PUBLISHED_OFFSETS, check_offsets, evaluation_references
from vss_models.data.transforms import EvaluationTransform
from vss_models.inference.frame_program import FrameProgram, LabelSize
from vss_models.model import VideoSegmentor, check_images


class _Inputs(NamedTuple):
    """A checked frame, or one of each of several videos.

    Attributes:
        frames: (B, 3, h, w) normalised, or uint8 (B, H, W, 3) where the program transforms them.
        frame_size: Height and width as given.
        network_size: Height and width of the network's input.
        is_batch: Whether several videos were meant.
    """

    frames: Tensor
    frame_size: tuple[int, int]
    network_size: tuple[int, int]
    is_batch: bool


class StreamingSegmenter:
    """Labels the frames of a video as they come.

    The references of a frame are those of the published evaluation, see
    :func:`vss_models.data.evaluation_references`; a frame that has none is labelled on its own. The
    result is that of running the model on the clip of these frames, but a frame passes the encoder
    once: only what later frames need of it is kept (MRCFA: projected keys and values at 1/32; CFFM:
    the fused features at 1/8), and only as long as they need it.

    Several videos of one size can run side by side as a batch.

    Args:
        model: The model, in evaluation mode.
        offsets: Frames of the references relative to the target, oldest first; None is
            :func:`reference_offsets`.
        transform: How uint8 frames become the network's input; None is
            :func:`evaluation_transform`, so frames have the size the model was trained for.
        precision: "float32" or "bfloat16", see
            :class:`vss_models.inference.frame_program.FrameProgram`. None takes what the model was
            trained in, float32 where it does not know.
        compile: None, "inductor", "cuda-graph" or "auto", see there.
        frame_size: (height, width) of uint8 frames to :meth:`warm_up` for at once.

    Attributes:
        model: The model.
        offsets: Frames of the references relative to the target.
        transform: How uint8 frames become the network's input.
        num_frames: Frames since the start or the latest :meth:`reset`.

    Raises:
        ValueError: If the model is in training mode or needs another number of references, or the
            precision or the way to compile is unknown or not possible here.
    """

    def __init__(
        self,
        model: VideoSegmentor,
        offsets: Sequence[int] | None = None,
        transform: EvaluationTransform | None = None,
        precision: str | None = None,
        compile: str | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        self.model = model
        self._check_mode()
        self.offsets = reference_offsets(model) if offsets is None else check_offsets(offsets)
        if len(self.offsets) != model.num_references:
            raise ValueError(
                f"offsets must name the {model.num_references} references of this model, got "
                f"{self.offsets}"
            )
        self.transform = evaluation_transform(model) if transform is None else transform
        self._span = -min(self.offsets, default=0)
        self._program = FrameProgram(
            model,
            self.transform,
            self._span,
            precision or model.trained_on.precision or "float32",
            compile,
        )
        self.reset()
        if frame_size is not None:
            self.warm_up(frame_size)

    @property
    def is_compiled(self) -> bool:
        """Whether the model is compiled, at the first frames of a size or by :meth:`warm_up`."""
        return self._program.is_compiled

    def reset(self) -> None:
        """Forgets the video, so that the next frame starts a new one, of any size.

        Weights that the model was given in the meantime count from now on.
        """
        self.num_frames = 0
        self._shape: tuple[int, ...] | None = None
        self._frame_size: tuple[int, int] | None = None
        self._program.reset()

    def warm_up(self, frame_size: tuple[int, int], batch: int = 1) -> None:
        """Compiles and allocates for frames of a size now rather than at the first ones.

        The video so far is not touched.

        Args:
            frame_size: (height, width) of the uint8 frames to come.
            batch: Videos side by side.
        """
        inputs = self._prepare(torch.zeros(batch, *frame_size, 3, dtype=torch.uint8))
        size = LabelSize(inputs.frame_size, inputs.network_size)
        self._program.warm_up(inputs.frames, len(self.offsets), size)

    def step(self, frame: Tensor | np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Labels the next frame.

        Args:
            frame: One of

                - uint8 (H, W, 3) or (B, H, W, 3) RGB: passes through `transform` first;
                - floating point (3, H, W) or (B, 3, H, W), normalised: the network's input itself.

                B videos run side by side; B and the size stay the same until :meth:`reset`.
            size: (height, width) of the labels; None for the frame's own.

        Returns:
            (H, W) or (B, H, W) classes on the model's device, uint8 for at most 256 classes, else
            int64.

        Raises:
            TypeError: If the frame is neither uint8 nor floating point.
            ValueError: If its shape is wrong or differs from the frames before, or `size` is not
                positive. The frame is not taken in then, and the video can go on.
        """
        if size is not None and not (len(size) == 2 and min(size) >= 1):
            raise ValueError(f"size must be (height, width) of at least 1 pixel each, got {size}")
        inputs = self._prepare(frame)
        if self._frame_size not in (None, inputs.frame_size):
            raise ValueError(
                f"the frame size (height, width) changed from {self._frame_size} to "
                f"{inputs.frame_size} in the middle of a video; call reset() to start a new one"
            )
        label_size = inputs.frame_size if size is None else (int(size[0]), int(size[1]))
        labels = self._advance(inputs.frames, LabelSize(label_size, inputs.network_size))
        self._frame_size = inputs.frame_size
        return labels if inputs.is_batch else labels[0]

    def step_logits(self, images: Tensor) -> Tensor:
        """Computes the logits (B, K, H/4, W/4) of the next frame.

        Args:
            images: (B, 3, H, W) floating point, normalised.

        Raises:
            TypeError: If they are not floating point.
            ValueError: If the model is in training mode, or their shape is wrong or differs from
                the frames before.
        """
        check_images("images", images, "(B, 3, H, W)")
        return self._advance(images, None)

    def _advance(self, frames: Tensor, size: LabelSize | None) -> Tensor:
        """Segments a frame and counts it."""
        self._check_mode()
        if self._shape is not None and tuple(frames.shape) != self._shape:
            raise ValueError(
                f"the network's input changed from {self._shape} to {tuple(frames.shape)} in the "
                "middle of a video; call reset() to start a new one"
            )
        wanted = (self.num_frames, *evaluation_references(self.num_frames, self.offsets))
        places = [number % max(self._span, 1) for number in wanted]
        result = self._program(frames, places, size)
        self._shape = tuple(frames.shape)
        self.num_frames += 1
        return result

    def _prepare(self, frame: Tensor | np.ndarray) -> _Inputs:
        """Checks a frame and makes it what the program takes."""
        if isinstance(frame, np.ndarray):
            # A copy: tensors must not share memory that may be read-only.
            frame = torch.from_numpy(frame.copy())
        if not isinstance(frame, Tensor) or not (
            frame.dtype == torch.uint8 or frame.is_floating_point()
        ):
            kind = frame.dtype if isinstance(frame, Tensor) else type(frame).__name__
            raise TypeError(
                "frame must be uint8 RGB (H, W, 3) or normalised floating point (3, H, W), got "
                f"{kind}"
            )
        is_bytes = frame.dtype == torch.uint8
        layout = "(H, W, 3) or (B, H, W, 3)" if is_bytes else "(3, H, W) or (B, 3, H, W)"
        if (
            frame.dim() not in (3, 4)
            or frame.shape[-1 if is_bytes else -3] != 3
            or 0 in frame.shape
        ):
            raise ValueError(
                f"a frame of {frame.dtype} must have the shape {layout}, got {tuple(frame.shape)}"
            )
        is_batch = frame.dim() == 4
        frames = frame if is_batch else frame.unsqueeze(0)
        if not is_bytes:
            size = (frames.shape[2], frames.shape[3])
            weights = next(self.model.parameters())
            return _Inputs(frames.to(weights.device, weights.dtype), size, size, is_batch)
        size = (frames.shape[1], frames.shape[2])
        if self._program.takes_bytes:
            return _Inputs(frames, size, self.transform.output_size(size), is_batch)
        weights = next(self.model.parameters())
        images = self.transform(frames.permute(0, 3, 1, 2)).to(weights.device, weights.dtype)
        return _Inputs(images, size, (images.shape[2], images.shape[3]), is_batch)

    def _check_mode(self) -> None:
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() first")


def reference_offsets(model: VideoSegmentor) -> tuple[int, ...]:
    """Returns the frames that a model looks back to, relative to the target, as it was trained.

    Where that is not known they are the published (-9, -6, -3), or none for a per-frame model.
    """
    offsets = model.trained_on.reference_offsets
    if offsets is None:
        offsets = PUBLISHED_OFFSETS if model.num_references else ()
    return check_offsets(offsets)


def evaluation_transform(model: VideoSegmentor) -> EvaluationTransform:
    """Returns how uint8 frames become the input of a model, as it was trained.

    Frames are fitted into the model's `trained_on.frame_scale`, the published 853x480 where it is
    not known, and their sides are stretched to multiples of 32.
    """
    scale = model.trained_on.frame_scale
    if scale is None:
        return EvaluationTransform()
    return EvaluationTransform(scale=scale or None)


__all__ = ["StreamingSegmenter", "evaluation_transform", "reference_offsets"]
