"""Evaluation frame after frame, with each frame encoded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import SumMetric

from vss_models.data import ClipTestDataset
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.metrics import (
    DEFINITIONS,
    PUBLISHED_SHORTEST_VIDEO,
    SegmentationMetrics,
    VideoConsistency,
)
from vss_models.model import VideoSegmentor
from vss_models.training.report import EvaluationReport

WINDOWS = (8, 16)
"""Window lengths, in frames, of the video consistency that is reported."""


class Evaluator:
    """Predicts frames in order and collects the figures of :class:`EvaluationReport`.

    Under torch.distributed each process evaluates its own videos, and the report is of all.

    Args:
        model: The model; it must be in evaluation mode while frames are given.
        offsets: Frames of the references relative to the target, oldest first; a per-frame model
            has no use for them.
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
        if model.num_references and len(offsets) != model.num_references:
            raise ValueError(
                f"offsets must name the {model.num_references} references of this model, got "
                f"{list(offsets)}"
            )
        self.class_names = tuple(class_names)
        self._model = model
        self._offsets = tuple(offsets) if model.num_references else ()

    def reset(self, device: torch.device | str, complete: bool = True) -> None:
        """Forgets all figures and collects the next ones.

        Args:
            device: Where the figures are kept.
            complete: Whether to measure the video consistency too, and the mean IoU of long videos.

        Raises:
            ValueError: If the model is in training mode.
        """
        self._stream = StreamingSegmenter(self._model, self._offsets)
        self._segmentation = SegmentationMetrics(len(self.class_names)).to(device)
        self._of_long_videos: SegmentationMetrics | None = None
        if complete:
            self._of_long_videos = SegmentationMetrics(
                len(self.class_names), shortest_video=PUBLISHED_SHORTEST_VIDEO
            ).to(device)
        self._consistency = {
            (window, definition): VideoConsistency(window, definition).to(device)
            for window in WINDOWS
            for definition in DEFINITIONS
            if complete
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

        Raises:
            ValueError: If a frame of the video was left out.
        """
        first = item["frame_index"] == 0
        if first:
            self._stream.reset()
        if self._stream.num_frames != item["frame_index"]:
            raise ValueError(
                f"expected frame {self._stream.num_frames} of {item['video']}, got frame "
                f"{item['frame_index']}; give all frames of a video in order"
            )
        labels = item["labels"]
        predicted = self._stream.step(item["clip"][:, -1], labels.shape[-2:])
        self._segmentation.update(predicted, labels, new_video=first)
        if self._of_long_videos is not None:
            self._of_long_videos.update(predicted, labels, new_video=first)
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
        long_videos = self._of_long_videos
        return EvaluationReport(
            mean_iou=float(figures["mean_iou"]),
            weighted_iou=float(figures["weighted_iou"]),
            pixel_accuracy=float(figures["pixel_accuracy"]),
            class_names=self.class_names,
            class_iou=tuple(figures["class_iou"].tolist()),
            class_frequency=tuple(figures["class_frequency"].tolist()),
            mean_iou_of_long_videos=(
                math.nan if long_videos is None else float(long_videos.compute()["mean_iou"])
            ),
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
