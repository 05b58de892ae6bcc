"""What a model of the demonstration does on the held-out videos, by kind of disturbance."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vss_models.checkpoints import load_model, load_pretrained
from vss_models.data import (
    ClipTestDataset,
    EvaluationTransform,
    read_disturbances,
    read_image,
)
from vss_models.data.synthetic_video import DISTURBANCES, UNDISTURBED
from vss_models.demo.settings import NAMES, DemoSettings
from vss_models.demo.train import TARGET_LOSS, learning_curve
from vss_models.metrics import SegmentationMetrics, VideoConsistency
from vss_models.model import VideoSegmentor
from vss_models.registry import create_model
from vss_models.training import EvaluationReport, evaluate

KINDS = (UNDISTURBED, *DISTURBANCES)


@dataclass(frozen=True)
class KindFigures:
    """Figures of the frames of one kind.

    Attributes:
        frames: Number of frames.
        mean_iou: Their mean IoU, in 0..1.
        consistency: Of the pixels whose label is as in the frame before, the fraction that is right
            in both frames, in 0..1: the corrected VC2 of these frames and their predecessors.
    """

    frames: int
    mean_iou: float
    consistency: float


@dataclass(frozen=True)
class Figures:
    """Figures of one model: over all frames, and by kind of disturbance."""

    report: EvaluationReport
    by_kind: dict[str, KindFigures]


@dataclass(frozen=True)
class ModelResult:
    """What came of training one model.

    Attributes:
        family: "segformer", "mrcfa" or "cffm".
        figures: Of its predictions.
        per_frame: Of the per-frame head of the same network; None for SegFormer, which is no more.
        per_frame_at_8: Of the same, read at the 1/8 of the image at which MRCFA and CFFM decode:
            what they gain over this comes from the references.
        parameters: Number of parameters.
        curve: (step, cross-entropy of the prediction that is evaluated) in training.
        predictions: Labels (H, W) of the frames that are shown, by (video, frame).
    """

    family: str
    figures: Figures
    per_frame: Figures | None
    per_frame_at_8: Figures | None
    parameters: int
    curve: list[tuple[int, float]]
    predictions: dict[tuple[str, str], np.ndarray]

    @property
    def name(self) -> str:
        """The model's name as it is written."""
        return NAMES[self.family]


class FiguresByKind:
    """Collects figures frame by frame, apart for each kind of disturbance.

    Args:
        kinds: Kind of each frame by (video, frame).
        num_classes: Number of classes.
    """

    def __init__(self, kinds: dict[tuple[str, str], str], num_classes: int) -> None:
        self._kinds = kinds
        self._segmentation = {kind: SegmentationMetrics(num_classes) for kind in KINDS}
        self._consistency = {kind: VideoConsistency(2, "corrected") for kind in KINDS}
        self._frames = dict.fromkeys(KINDS, 0)
        self._before: tuple[str, Tensor, Tensor] | None = None

    def update(self, video: str, frame: str, predicted: Tensor, labels: Tensor) -> None:
        """Adds a frame: prediction and truth (H, W). Frames of a video come in order."""
        kind = self._kinds[video, frame]
        self._frames[kind] += 1
        self._segmentation[kind].update(predicted, labels)
        if self._before is not None and self._before[0] == video:
            _, predicted_before, labels_before = self._before
            self._consistency[kind].update(
                torch.stack([predicted_before, predicted]), torch.stack([labels_before, labels])
            )
        self._before = (video, predicted.clone(), labels.clone())

    def compute(self) -> dict[str, KindFigures]:
        """Returns the figures of every kind that occurred."""
        return {
            kind: KindFigures(
                frames,
                float(self._segmentation[kind].compute()["mean_iou"]),
                float(self._consistency[kind].compute()),
            )
            for kind, frames in self._frames.items()
            if frames
        }


def held_out(data: Path, settings: DemoSettings, offsets: Sequence[int] = ()) -> ClipTestDataset:
    """Opens the held-out videos."""
    height, width = settings.size
    return ClipTestDataset(
        data, "val", offsets=offsets, transform=EvaluationTransform(scale=(width, height))
    )


def frames_to_show(data: Path, settings: DemoSettings) -> list[tuple[str, str, str]]:
    """Chooses a frame of each kind: (kind, video, frame).

    It is the first of its kind that has all its references, from a video that is not shown yet
    while there is one: the choice knows no prediction.
    """
    first = -min(settings.offsets)
    shown: list[tuple[str, str, str]] = []
    disturbed = read_disturbances(data)
    names = {video.name for video in held_out(data, settings).videos}
    for kind in KINDS:
        candidates = [
            (kind, video, frame)
            for (video, frame), happened in disturbed.items()
            if happened == kind and video in names and int(frame) >= first
        ]
        used = {video for _, video, _ in shown}
        candidates.sort(key=lambda candidate: candidate[1] in used)
        shown += candidates[:1]
    return shown


def image_and_truth(
    dataset: ClipTestDataset, video: str, frame: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a held-out frame, uint8 (H, W, 3), and its truth, (H, W)."""
    number = [record.name for record in dataset.videos].index(video)
    frames = dataset.videos[number].frames
    position = [path.stem for path in frames].index(frame)
    labels = dataset[sum(dataset.video_lengths[:number]) + position]["labels"]
    image = read_image(frames[position]).permute(1, 2, 0).numpy()
    return image, labels.reshape(image.shape[:2]).numpy()


def judge_all(
    runs: Sequence[tuple[str, Path]],
    data: Path,
    settings: DemoSettings,
    shown: set[tuple[str, str]],
) -> list[ModelResult]:
    """Evaluates trained models as :func:`judge` does, as many at once as there are threads.

    Args:
        runs: Family of each model and folder of its training; those that take long come last.
        data: Folder of the data set.
        settings: Sizes and offsets.
        shown: Frames whose predictions are kept, as (video, frame).

    Returns:
        A result for each run.
    """
    # Frames of this size are small: two models side by side gain more from two threads than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            judged = [pool.submit(judge, *run, data, settings, shown) for run in reversed(runs)]
            return [result.result() for result in reversed(judged)]
    finally:
        torch.set_num_threads(threads)


def judge(
    family: str, run: Path, data: Path, settings: DemoSettings, shown: set[tuple[str, str]]
) -> ModelResult:
    """Evaluates a trained model and writes the figures into its folder.

    Args:
        family: Family of the model.
        run: Folder of its training.
        data: Folder of the data set.
        settings: Sizes and offsets.
        shown: Frames whose predictions are kept, as (video, frame).

    Returns:
        Its figures and those of the per-frame head of the same network.
    """
    model = load_model(run / "last.pt")
    figures, predictions = _evaluate(model, data, settings, shown)
    figures.report.write(run)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    per_frame = per_frame_at_8 = None
    if model.num_references:
        assert model.config is not None
        alone = create_model("segformer_b0", model.num_classes, **model.config.overrides)
        load_pretrained(alone, run / "last.pt", verbose=False)
        per_frame, _ = _evaluate(alone, data, settings, set())
        model.head.start_as_per_frame()
        per_frame_at_8, _ = _evaluate(model, data, settings, set())
    return ModelResult(
        family,
        figures,
        per_frame,
        per_frame_at_8,
        parameters,
        learning_curve(run, TARGET_LOSS[family]),
        predictions,
    )


def _evaluate(
    model: VideoSegmentor, data: Path, settings: DemoSettings, shown: set[tuple[str, str]]
) -> tuple[Figures, dict[tuple[str, str], np.ndarray]]:
    dataset = held_out(data, settings, settings.offsets if model.num_references else ())
    by_kind = FiguresByKind(read_disturbances(data), model.num_classes)
    predictions: dict[tuple[str, str], np.ndarray] = {}

    def keep(item: dict[str, Any], predicted: Tensor) -> None:
        name = (item["video"], item["frame"])
        by_kind.update(*name, predicted, item["labels"].reshape(predicted.shape))
        if name in shown:
            predictions[name] = predicted.numpy()

    report = evaluate(model, dataset, on_frame=keep)
    return Figures(report, by_kind.compute()), predictions


__all__ = [
    "KINDS",
    "Figures",
    "FiguresByKind",
    "KindFigures",
    "ModelResult",
    "frames_to_show",
    "held_out",
    "image_and_truth",
    "judge",
    "judge_all",
]
