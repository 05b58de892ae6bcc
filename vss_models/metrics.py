"""Metrics of video semantic segmentation, summed correctly over any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

PUBLISHED_SHORTEST_VIDEO = 17
"""The published script leaves out videos with fewer frames, from the consistency whatever the
window, and from the IoU as well. The published evaluation during training counts all videos."""

DEFINITIONS = ("published", "corrected")


class SegmentationMetrics(Metric):
    """IoU and accuracy from one confusion matrix over all frames, void pixels left out.

    `compute` returns a dict of float64 tensors:

    - `mean_iou`: mean IoU over the classes present in the ground truth;
    - `weighted_iou`: IoU weighted with each class's frequency;
    - `pixel_accuracy`: fraction of the labelled pixels with the right label;
    - `class_iou` (K,): IoU of each class, NaN where neither truth nor prediction has it;
    - `class_accuracy` (K,): fraction of each class's pixels with the right label, NaN where the
      truth has none;
    - `class_frequency` (K,): each class's fraction of the labelled pixels.

    All are NaN as long as no labelled pixel was counted.

    Args:
        num_classes: Number of classes K.
        ignore_index: Label of void pixels.
        shortest_video: Number of frames from which a video counts. 1 counts every video, as the
            published evaluation during training does; `PUBLISHED_SHORTEST_VIDEO` counts those that
            the published evaluation script counts.
        **kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        confusion: (K, K) int64, pixels by true class (rows) and predicted class (columns).

    Raises:
        ValueError: If `num_classes` or `shortest_video` is not positive or `ignore_index` is a
            class.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    confusion: Tensor
    _uncounted: Tensor | None
    _video_frames: int

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        shortest_video: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index must not be one of the classes 0..{num_classes - 1}, got "
                f"{ignore_index}"
            )
        if shortest_video < 1:
            raise ValueError(f"shortest_video must be at least 1 frame, got {shortest_video}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.shortest_video = shortest_video
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", empty, dist_reduce_fx="sum")
        self._forget_video()

    def update(self, predictions: Tensor, labels: Tensor, new_video: bool = True) -> None:
        """Counts the pixels of some frames of one video.

        Args:
            predictions: (..., H, W) integer classes.
            labels: The same shape, integer classes or `ignore_index`.
            new_video: Whether the first frame starts a video. False continues the video of the
                previous call. Without effect if `shortest_video` is 1.

        Raises:
            TypeError: If one is no integer tensor.
            ValueError: If the shapes differ, or a labelled pixel's label or prediction is no class.
        """
        _check_pair(predictions, labels)
        if new_video:
            self._forget_video()
        self._video_frames += labels.shape[:-2].numel()
        # Void pixels are counted as class 0 predicted as 0 and taken off again, which takes a third
        # of the time of picking out the others.
        void = labels == self.ignore_index
        true, predicted = labels.masked_fill(void, 0), predictions.masked_fill(void, 0)
        confusion = torch.zeros_like(self.confusion)
        if true.numel() > 0:
            for name, values in (("labels", true), ("predictions", predicted)):
                low, high = (int(bound) for bound in torch.aminmax(values))
                if low < 0 or high >= self.num_classes:
                    raise ValueError(
                        f"{name} must be classes 0..{self.num_classes - 1} where the label is not "
                        f"{self.ignore_index}, got {low if low < 0 else high}"
                    )
            confusion = multiclass_confusion_matrix(
                predicted.long(), true.long(), self.num_classes, validate_args=False
            )
            confusion[0, 0] -= void.sum()
        if self._uncounted is not None:
            confusion = confusion + self._uncounted
        # That a video is long enough shows with its last frame needed, so earlier ones wait.
        if self._video_frames < self.shortest_video:
            self._uncounted = confusion
        else:
            self._uncounted = None
            self.confusion += confusion

    def reset(self) -> None:
        """Forgets all frames."""
        super().reset()
        self._forget_video()

    def _forget_video(self) -> None:
        self._video_frames = 0
        self._uncounted = None

    def compute(self) -> dict[str, Tensor]:
        """Returns the figures of all pixels so far; see the class."""
        confusion = self.confusion.double()
        right = confusion.diagonal()
        of_class = confusion.sum(dim=1)
        class_iou = right / (of_class + confusion.sum(dim=0) - right)
        present = of_class > 0
        frequency = of_class / of_class.sum()
        return {
            "mean_iou": class_iou[present].mean(),
            "weighted_iou": torch.where(present, frequency * class_iou, frequency).sum(),
            "pixel_accuracy": right.sum() / of_class.sum(),
            "class_iou": class_iou,
            "class_accuracy": right / of_class,
            "class_frequency": frequency,
        }


class VideoConsistency(Metric):
    """Video consistency VCn: do pixels whose label stays the same keep their prediction?

    For each window of n consecutive frames, the fraction of the pixels with a constant label that
    also have a constant prediction; then the mean over the windows of all videos, without windows
    that have no such pixel (Miao et al., "VSPW", CVPR 2021). Two definitions:

    - `"published"`: what the published evaluation script computes. The last window of each video is
      left out, videos of at most 16 frames are skipped whatever the window, the prediction only has
      to be constant, not right, and pixels that stay void count.
    - `"corrected"`: all windows of all videos, the prediction has to be right, void is left out.

    `compute` returns a float64 scalar, NaN as long as no window was counted. Memory and time for a
    frame do not depend on the length of the video or of the window.

    Args:
        window: Number of frames n in a window.
        definition: "published" or "corrected".
        ignore_index: Label of void pixels.
        **kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        consistency: float64 sum over windows.
        windows: int64 number of windows.

    Raises:
        ValueError: If `window` is not positive or `definition` is unknown.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    consistency: Tensor
    windows: Tensor

    def __init__(
        self, window: int, definition: str = "published", ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if window < 1:
            raise ValueError(f"window must be at least 1 frame, got {window}")
        if definition not in DEFINITIONS:
            raise ValueError(f"definition must be one of {DEFINITIONS}, got {definition!r}")
        self.window = window
        self.definition = definition
        self.ignore_index = ignore_index
        self.add_state("consistency", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._video: _VideoProgress | None = None

    def update(self, predictions: Tensor, labels: Tensor, new_video: bool = True) -> None:
        """Adds a video, or some more frames of one.

        Args:
            predictions: (L, H, W) integer classes, in the order of the frames.
            labels: The same shape, integer classes or `ignore_index`.
            new_video: Whether the first frame starts a video. False continues the video of the
                previous call, so that a long one can be given piece by piece.

        Raises:
            TypeError: If one is no integer tensor.
            ValueError: If the shapes do not fit, or there is no video to continue.
        """
        _check_pair(predictions, labels)
        if labels.dim() != 3:
            raise ValueError(f"predictions and labels must be (L, H, W), got {tuple(labels.shape)}")
        if new_video:
            self._video = None
        elif self._video is None:
            raise ValueError("new_video=False continues a video, but none was begun")
        elif self._video.labels.shape != labels.shape[1:]:
            raise ValueError(
                f"all frames of a video must have one size, got {tuple(labels.shape[1:])} after "
                f"{tuple(self._video.labels.shape)}"
            )
        for prediction, label in zip(predictions, labels, strict=True):
            self._add_frame(prediction, label)
        if self._video is not None and len(labels) > 0:
            # A copy: the caller's tensors may be long, and may be written to before the next piece.
            self._video.predictions = predictions[-1].clone()
            self._video.labels = labels[-1].clone()

    def reset(self) -> None:
        """Forgets all videos."""
        super().reset()
        self._video = None

    def compute(self) -> Tensor:
        """Returns the mean over all windows so far."""
        return self.consistency / self.windows

    def _add_frame(self, prediction: Tensor, label: Tensor) -> None:
        video = self._video
        if video is None:
            self._video = video = _VideoProgress(prediction, label)
        if self.definition == "corrected":
            counted = label != self.ignore_index
            kept = counted & (prediction == label)
            prediction_stays = torch.ones_like(kept)
        else:
            counted = kept = torch.ones_like(label, dtype=torch.bool)
            prediction_stays = prediction == video.predictions
        label_stays = label == video.labels
        video.label_run.mul_(label_stays).add_(1).mul_(counted)
        video.kept_run.mul_(label_stays & prediction_stays).add_(1).mul_(kept)
        video.predictions, video.labels = prediction, label
        video.num_frames += 1

        ratio = None
        if video.num_frames >= self.window:
            constant = (video.label_run >= self.window).sum(dtype=torch.float64)
            ratio = (video.kept_run >= self.window).sum() / constant
        if self.definition == "corrected":
            self._count([ratio])
            return
        # That a window is not the last one of its video shows with the next frame only, and that
        # the video is long enough with its 17th.
        video.waiting.append(ratio)
        if video.num_frames >= PUBLISHED_SHORTEST_VIDEO:
            self._count(video.waiting[:-1])
            del video.waiting[:-1]

    def _count(self, ratios: list[Tensor | None]) -> None:
        for ratio in ratios:
            if ratio is not None:
                self.consistency += ratio.nan_to_num(0.0)
                self.windows += ~ratio.isnan()


class _VideoProgress:
    """What must be remembered of the video in progress.

    Attributes:
        predictions: (H, W), of the latest frame.
        labels: (H, W), of the latest frame.
        label_run: (H, W) int32, latest frames over which the label is constant and counts.
        kept_run: (H, W) int32, those of them over which the prediction is consistent too.
        num_frames: Frames so far.
        waiting: Ratios of windows that may yet turn out not to count; None for a frame without.
    """

    def __init__(self, predictions: Tensor, labels: Tensor) -> None:
        self.predictions = predictions
        self.labels = labels
        self.label_run = torch.zeros_like(labels, dtype=torch.int32)
        self.kept_run = torch.zeros_like(labels, dtype=torch.int32)
        self.num_frames = 0
        self.waiting: list[Tensor | None] = []


def _check_pair(predictions: Tensor, labels: Tensor) -> None:
    for name, tensor in (("predictions", predictions), ("labels", labels)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be an integer tensor, got {type(tensor).__name__}")
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must be an integer tensor of classes, got {tensor.dtype}")
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions and labels must have one shape, got {tuple(predictions.shape)} and "
            f"{tuple(labels.shape)}"
        )


__all__ = ["DEFINITIONS", "PUBLISHED_SHORTEST_VIDEO", "SegmentationMetrics", "VideoConsistency"]
