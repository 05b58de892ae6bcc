"""What the demonstration found: a Markdown report, a contact sheet and a learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vss_models.atomic import atomic_write
from vss_models.data import ClassTable
from vss_models.training import EvaluationReport
from vss_models.visualize import colour_labels, contact_sheet, write_png

NAMES = {"mrcfa": "MRCFA", "segformer": "SegFormer (per frame)"}


class Frame(NamedTuple):
    """One held-out frame: image (H, W, 3), truth and prediction (H, W)."""

    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class ModelResult:
    """What one model did.

    Attributes:
        family: "mrcfa" or "segformer".
        report: Figures on the held-out videos.
        parameters: Number of parameters.
        curve: (step, training loss) pairs.
        frames: Frames for the contact sheet by (video, frame).
        classes: Names and colours of the classes.
    """

    family: str
    report: EvaluationReport
    parameters: int
    curve: list[tuple[int, float]]
    frames: dict[tuple[str, str], Frame]
    classes: ClassTable


def learning_curve(run: Path) -> list[tuple[int, float]]:
    """Reads (step, training loss) from a run's TensorBoard log."""
    events = EventAccumulator(str(run)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def write_report(
    out: Path, seed: int, results: Sequence[ModelResult], seconds: dict[str, float]
) -> Path:
    """Writes ``report.md``, ``contact_sheet.png`` and ``learning_curve.png`` into ``out``.

    Args:
        out: Folder of the demonstration.
        seed: Seed it ran with.
        results: One per model, MRCFA first.
        seconds: Duration of each stage.

    Returns:
        The Markdown file.
    """
    _write_sheet(out / "contact_sheet.png", results)
    _write_curves(out / "learning_curve.png", results)
    text = _markdown(seed, results, seconds)
    with atomic_write(out / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\nReport: {out / 'report.md'}")
    return out / "report.md"


def chance_iou(shares: Sequence[float]) -> float:
    """Mean IoU of always naming the most frequent class, over the classes that occur."""
    present = [share for share in shares if share > 0]
    return max(present) / len(present)


def _markdown(seed: int, results: Sequence[ModelResult], seconds: dict[str, float]) -> str:
    chance = 100 * chance_iou(results[0].report.class_share)
    figures = [name for name, _ in results[0].report.summary()]
    rows = [dict(result.report.summary()) for result in results]
    lines = [
        "# Demonstration",
        "",
        f"Two small models trained on synthetic videos (seed {seed}) on "
        f"{torch.get_num_threads()} CPU threads, and evaluated on "
        f"{results[0].report.num_frames} frames of {results[0].report.num_videos} videos "
        "they have never seen.",
        "",
        "| figure, % | " + " | ".join(NAMES[result.family] for result in results) + " |",
        "|---|" + "---:|" * len(results),
        *(
            f"| {name} | " + " | ".join(f"{100 * row[name]:.1f}" for row in rows) + " |"
            for name in figures
        ),
        "| parameters, millions | "
        + " | ".join(f"{result.parameters / 1e6:.2f}" for result in results)
        + " |",
        "",
        f"Always naming the most frequent class would give an mIoU of {chance:.1f}.",
        "",
        "Both models have the same encoder, were trained for the same number of steps with the "
        "same recipe, and saw the same number of frames in every step (clips of four labelled "
        "frames): " + _verdict(results),
        "",
        "![Frame, truth and predictions](contact_sheet.png)",
        "",
        "![Training loss](learning_curve.png)",
        "",
        "| stage | seconds |",
        "|---|---:|",
        *(f"| {name} | {duration:.0f} |" for name, duration in seconds.items()),
        f"| all | {sum(seconds.values()):.0f} |",
        "",
        "The segmented video is `segmented/`, the trained models are `mrcfa/last.pt` and "
        "`segformer/last.pt`; try `vss segment VIDEO --checkpoint mrcfa/last.pt --out FOLDER`.",
        "",
    ]
    return "\n".join(lines)


def _verdict(results: Sequence[ModelResult]) -> str:
    """Says which model did better, and that one small run proves little."""
    first, second = results
    gain = 100 * (first.report.mean_iou - second.report.mean_iou)
    word = "above" if gain >= 0 else "below"
    return (
        f"{NAMES[first.family]} ended {abs(gain):.1f} points of mIoU {word} "
        f"{NAMES[second.family]}. This is one short run with one seed on made-up videos: it shows "
        "that the system works, not which method is better."
    )


def _write_sheet(path: Path, results: Sequence[ModelResult]) -> None:
    colours = np.asarray(results[0].classes.colours, dtype=np.uint8)
    palette = np.zeros((256, 3), dtype=np.uint8)  # void, 255 in the truth, is black
    palette[: len(colours)] = colours
    rows = []
    for name, frame in results[0].frames.items():
        predictions = [result.frames[name].predicted for result in results]
        coloured = [colour_labels(labels, palette) for labels in (frame.truth, *predictions)]
        rows.append([frame.image, *coloured])
    titles = ["frame", "truth", *(NAMES[result.family] for result in results)]
    write_png(path, contact_sheet(rows, column_titles=titles, cell_height=144))


def _write_curves(path: Path, results: Sequence[ModelResult]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="training loss", title="Learning curves")
    for result in results:
        steps, losses = zip(*result.curve, strict=True)
        axes.plot(steps, losses, label=NAMES[result.family])
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
