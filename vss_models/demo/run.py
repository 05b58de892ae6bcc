"""The demonstration: make data, train two models alike, compare them, segment a video, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vss_models.checkpoints import load_model
from vss_models.commands import segment
from vss_models.data import (
    PUBLISHED_OFFSETS,
    ClipTestDataset,
    EvaluationTransform,
    make_synthetic_dataset,
    read_image,
)
from vss_models.demo.report import Frame, ModelResult, learning_curve, write_report
from vss_models.training import evaluate
from vss_models.training.cli import run_cli
from vss_models.video import VideoWriter

MARK = ".vss-demo"
"""A file that tells a demonstration's folder, which may be replaced, from anybody else's."""

FRAMES_PER_SECOND = 10


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration trains on and for how long.

    Attributes:
        num_train: Training videos.
        num_val: Held-out videos.
        frames: Frames of each video.
        size: (height, width) of the frames.
        steps: Training steps of each model; None for those of the shipped configurations.
        seed: Seed of the data and of both trainings.
    """

    num_train: int = 24
    num_val: int = 6
    frames: int = 30
    size: tuple[int, int] = (96, 160)
    steps: int | None = None
    seed: int = 0


def run_demo(
    out: Path | str, settings: DemoSettings | None = None, overwrite: bool = False
) -> Path:
    """Runs the demonstration.

    MRCFA and a per-frame SegFormer of the same encoder are trained with the same number of steps on
    the same number of frames, evaluated on the same held-out videos, and MRCFA segments an mp4.

    Args:
        out: Folder for everything the demonstration makes.
        settings: Sizes and steps.
        overwrite: Whether the folder of an earlier demonstration may be replaced.

    Returns:
        The report, a Markdown file.

    Raises:
        FileExistsError: ``out`` exists and is not an earlier demonstration, or may not be replaced.
    """
    settings = settings or DemoSettings()
    out = Path(out)
    _make_folder(out, overwrite)
    seconds: dict[str, float] = {}
    with _timed(seconds, "make the data"):
        data = make_synthetic_dataset(
            out / "data",
            num_train=settings.num_train,
            num_val=settings.num_val,
            frames=settings.frames,
            size=settings.size,
            seed=settings.seed,
        )
    results = []
    for family in ("mrcfa", "segformer"):
        with _timed(seconds, f"train {family}"):
            _train(family, data, out / family, settings)
        with _timed(seconds, f"evaluate {family}"):
            results.append(_evaluate(family, data, out / family, settings))
    with _timed(seconds, "segment a video"):
        video = _make_video(data, out / "street.mp4")
        options = ["--checkpoint", str(out / "mrcfa" / "last.pt"), "--out", str(out / "segmented")]
        status = segment.main([str(video), *options])
        if status != 0:
            raise RuntimeError(f"vss segment ended with status {status}")
    return write_report(out, settings.seed, results, seconds)


def _make_folder(out: Path, overwrite: bool) -> None:
    if out.exists():
        if not (out / MARK).exists():
            raise FileExistsError(
                f"{out} exists and is not an earlier demonstration: choose another with --out"
            )
        if not overwrite:
            raise FileExistsError(
                f"{out} holds an earlier demonstration: add --overwrite to replace it"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _train(family: str, data: Path, output: Path, settings: DemoSettings) -> None:
    options = ["--config", f"{family}_synthetic", "--data.root", str(data), "--output", str(output)]
    options += ["--seed", str(settings.seed)]
    if settings.steps is not None:
        options += ["--trainer.max_steps", str(settings.steps)]
        options += ["--trainer.val_check_interval", str(settings.steps)]
        options += ["--trainer.log_every_n_steps", str(max(1, settings.steps // 30))]
    run_cli(["fit", *options])


def _evaluate(family: str, data: Path, output: Path, settings: DemoSettings) -> ModelResult:
    model = load_model(output / "last.pt")
    height, width = settings.size
    dataset = ClipTestDataset(
        data,
        "val",
        offsets=PUBLISHED_OFFSETS if model.num_references else (),
        transform=EvaluationTransform(scale=(width, height)),
    )
    shown = {(record.name, record.frames[len(record) * 2 // 3].stem) for record in dataset.videos}
    paths = {
        (record.name, frame.stem): frame for record in dataset.videos for frame in record.frames
    }
    frames: dict[tuple[str, str], Frame] = {}

    def keep(item: dict[str, Any], labels: Tensor) -> None:
        name = (item["video"], item["frame"])
        if name in shown:
            truth = item["labels"].reshape(labels.shape[-2:]).numpy()
            predicted = labels.reshape(labels.shape[-2:]).numpy()
            frames[name] = Frame(_read_pixels(paths[name]), truth, predicted)

    report = evaluate(model, dataset, on_frame=keep)
    report.print()
    report.write(output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelResult(family, report, parameters, learning_curve(output), frames, dataset.classes)


def _read_pixels(path: Path) -> np.ndarray:
    return read_image(path).permute(1, 2, 0).numpy()


def _make_video(data: Path, path: Path) -> Path:
    """Writes the first held-out video as an mp4, the way a user's own would come."""
    record = ClipTestDataset(data, "val").videos[0]
    images = [_read_pixels(frame) for frame in record.frames]
    with VideoWriter(path, Fraction(FRAMES_PER_SECOND), images[0].shape[:2]) as writer:
        for image in images:
            writer.write(image)
    return path
