"""Evaluation frame after frame, with each frame encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import SumMetric

from vss_kernels import upsample_argmax
from vss_models.data import ClipTestDataset, check_offsets, evaluation_references
from vss_models.metrics import DEFINITIONS, SegmentationMetrics, VideoConsistency
from vss_models.segmentor import VideoSegmentor
from vss_models.training.report import EvaluationReport

WINDOWS = (8, 16)
"""Window lengths, in frames, of the video consistency that is reported."""


class FramePredictor:
    """Logits of the frames of videos, given in order.

    The references of a frame are those of :func:`vss_models.data.evaluation_references`; a frame
    that has none gets its per-frame logits. What later frames need of a frame is kept, so that
    every frame goes through the encoder once.

    Args:
        model: The model, in evaluation mode.
        offsets: Frames of the references relative to the target, oldest first.

    Raises:
        ValueError: If the model needs another number of references.
    """

    def __init__(self, model: VideoSegmentor, offsets: Sequence[int]) -> None:
        self.model = model
        self.offsets = check_offsets(offsets)
        if model.num_references and len(self.offsets) != model.num_references:
            raise ValueError(
                f"offsets must name the {model.num_references} references of this model, got "
                f"{list(self.offsets)}"
            )
        self._references: dict[int, Any] = {}

    def __call__(self, image: Tensor, frame_index: int) -> Tensor:
        """Logits (1, K, h/4, w/4) of the next frame.

        Args:
            image: The normalised frame (1, 3, h, w).
            frame_index: Its number in its video; 0 starts a new video.

        Raises:
            ValueError: If a frame was left out.
        """
        if frame_index == 0:
            self._references.clear()
        if self.model.num_references == 0:
            return self.model.single_frame(image)
        state = self.model.encode_frame(image)
        wanted = evaluation_references(frame_index, self.offsets)
        missing = [frame for frame in wanted if frame not in self._references]
        if missing:
            raise ValueError(
                f"frame {frame_index} needs the frames {missing} before it; give all frames of a "
                "video in order, from 0"
            )
        references = [self._references[frame] for frame in wanted]
        self._references[frame_index] = state.reference
        self._references.pop(frame_index + min(self.offsets), None)
        if not wanted:
            return self.model.head.classify(state.fused)
        return self.model.decode(state, references)


class Evaluator:
    """Predicts frames in order and collects the figures of :class:`EvaluationReport`.

    Under torch.distributed each process evaluates its own videos, and the report is of all.

    Args:
        model: The model; it must be in evaluation mode while frames are given.
        offsets: Frames of the references relative to the target, oldest first.
        class_names: Names of the classes.

    Raises:
        ValueError: If the model needs another number of references or classes.
    """

    def __init__(
        self, model: VideoSegmentor, offsets: Sequence[int], class_names: Sequence[str]
    ) -> None:
        if len(class_names) != model.num_classes:
            raise ValueError(
                f"class_names must have one entry for each of the model's {model.num_classes} "
                f"classes, got {len(class_names)}"
            )
        self.class_names = tuple(class_names)
        self._predictor = FramePredictor(model, offsets)
        self.reset("cpu")

    def reset(self, device: torch.device | str, consistency: bool = True) -> None:
        """Forgets all figures and collects the next ones.

        Args:
            device: Where the figures are kept.
            consistency: Whether to measure the video consistency too.
        """
        self._segmentation = SegmentationMetrics(len(self.class_names)).to(device)
        self._consistency = {
            (window, definition): VideoConsistency(window, definition).to(device)
            for window in WINDOWS
            for definition in DEFINITIONS
            if consistency
        }
        self._num_videos = SumMetric().to(device)
        self._num_frames = SumMetric().to(device)

    def update(self, item: dict[str, Any]) -> Tensor:
        """Predicts the next frame and adds it to the figures.

        Args:
            item: A frame as :func:`vss_models.data.evaluation_loader` gives it: the last frame of
                ``clip`` (1, T, 3, h, w), ``labels`` (1, H, W), and where it is in its video.

        Returns:
            The predicted labels (H, W).
        """
        image, labels = item["clip"][:, -1], item["labels"]
        logits = self._predictor(image, item["frame_index"])
        predicted = upsample_argmax(logits, labels.shape[-2:], through=image.shape[-2:])
        first = item["frame_index"] == 0
        self._segmentation.update(predicted, labels)
        for metric in self._consistency.values():
            metric.update(predicted, labels, new_video=first)
        self._num_videos.update(int(first))
        self._num_frames.update(1)
        return predicted[0]

    def report(self) -> EvaluationReport:
        """The figures so far, of all processes together."""
        figures = self._segmentation.compute()
        consistency: dict[str, dict[str, float]] = {}
        for (window, definition), metric in self._consistency.items():
            consistency.setdefault(f"VC{window}", {})[definition] = float(metric.compute())
        return EvaluationReport(
            mean_iou=float(figures["mean_iou"]),
            weighted_iou=float(figures["weighted_iou"]),
            pixel_accuracy=float(figures["pixel_accuracy"]),
            class_names=self.class_names,
            class_iou=tuple(figures["class_iou"].tolist()),
            class_share=tuple(figures["class_share"].tolist()),
            video_consistency=consistency,
            num_videos=int(self._num_videos.compute()),
            num_frames=int(self._num_frames.compute()),
        )


@torch.inference_mode()
def evaluate(
    model: VideoSegmentor,
    dataset: ClipTestDataset,
    device: torch.device | str | None = None,
    on_frame: Callable[[dict[str, Any], Tensor], None] | None = None,
) -> EvaluationReport:
    """Evaluates a model on every video of a data set, on one device.

    Args:
        model: The model; it is put into evaluation mode and left so.
        dataset: Labelled videos; its offsets name the references.
        device: Where to compute; the model's own device if None.
        on_frame: Called after each frame with its item and the predicted labels (H, W).

    Returns:
        The figures.

    Raises:
        ValueError: If the data set has no labels, or other classes or offsets than the model.
    """
    if not dataset.labelled:
        raise ValueError(f"{dataset.root} has no masks to evaluate against")
    device = next(model.parameters()).device if device is None else torch.device(device)
    model.to(device).eval()
    evaluator = Evaluator(model, dataset.offsets, dataset.class_names)
    evaluator.reset(device)
    for video in range(len(dataset.videos)):
        for item in dataset.iterate_video(video):
            item["clip"] = item["clip"][None].to(device)
            item["labels"] = item["labels"][None].to(device)
            predicted = evaluator.update(item)
            if on_frame is not None:
                on_frame(item, predicted)
    return evaluator.report()
