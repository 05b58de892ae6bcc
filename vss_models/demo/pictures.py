"""The demonstration's pictures: a contact sheet, learning curves and a video to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vss_models.atomic import atomic_write
from vss_models.checkpoints import load_model
from vss_models.data import SYNTHETIC_CLASSES
from vss_models.data.synthetic_video import SyntheticVideo
from vss_models.demo.figures import ModelResult, held_out, image_and_truth
from vss_models.demo.settings import NAMES, DemoSettings
from vss_models.inference import StreamingSegmenter
from vss_models.inference.threads import WriteBehind
from vss_models.video import VideoWriter
from vss_models.visualize import Legend, colour_labels, contact_sheet, overlay, write_png

FRAMES_PER_SECOND = 10
_LEGEND_HEIGHT = 400
_STREET_SPLIT = 2
"""Part of a synthetic video's seed: 0 is training, 1 held-out videos, so this one is new."""


def write_contact_sheet(
    path: Path,
    data: Path,
    settings: DemoSettings,
    shown: Sequence[tuple[str, str, str]],
    results: Sequence[ModelResult],
) -> None:
    """Shows frames of each kind with their truth and every model's labels.

    Args:
        path: The PNG file.
        data: Folder of the data set.
        settings: Sizes.
        shown: The frames: (kind of disturbance, video, frame).
        results: The models, whose predictions hold these frames.
    """
    palette = label_palette()
    dataset = held_out(data, settings)
    rows, truths = [], []
    for _, video, frame in shown:
        image, truth = image_and_truth(dataset, video, frame)
        predictions = [result.predictions[video, frame] for result in results]
        truths.append(truth)
        rows.append([image, *(colour_labels(labels, palette) for labels in (truth, *predictions))])
    sheet = contact_sheet(
        rows,
        column_titles=["frame", "truth", *(result.name for result in results)],
        row_titles=["undisturbed" if kind == "none" else kind for kind, _, _ in shown],
        cell_height=144,
    )
    legend = Legend(SYNTHETIC_CLASSES.names, palette, min(_LEGEND_HEIGHT, len(sheet)))
    panel = _without_empty_end(legend.draw(np.concatenate(truths)))
    below = np.full((len(sheet) - len(panel), *panel.shape[1:]), 255, dtype=np.uint8)
    write_png(path, np.concatenate([sheet, np.concatenate([panel, below])], axis=1))


def write_curves(
    path: Path, first: Sequence[tuple[int, float]], results: Sequence[ModelResult]
) -> None:
    """Draws one figure for all models: the cross-entropy of the prediction that is evaluated.

    Args:
        path: The PNG file.
        first: (step, loss) of the SegFormer that all models started from.
        results: The models; their steps are counted on from there.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="training step",
        ylabel="cross-entropy of the final prediction",
        title="Learning curves, each point the mean of ten",
    )
    start = first[-1][0]
    axes.plot(*_smoothed(first), color="0.5", label="SegFormer, the common start")
    for result in results:
        curve = [(start + step, loss) for step, loss in result.curve]
        axes.plot(*_smoothed(curve), label=f"{result.name}, from there")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def street_video(settings: DemoSettings) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Paints a video that is in neither split, larger than those: frames and labels."""
    video = SyntheticVideo(settings.street_size, (settings.seed, _STREET_SPLIT, 0))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        painted = list(pool.map(video.frame, range(settings.street_frames)))
    # Void, 0, becomes 255.
    return [image for image, _ in painted], [mask - np.uint8(1) for _, mask in painted]


def write_street(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Writes frames as an mp4, the way a user's own video would come."""
    with VideoWriter(path, Fraction(FRAMES_PER_SECOND), frames[0].shape[:2]) as writer:
        for frame in frames:
            writer.write(frame)


def write_comparison(
    path: Path,
    out: Path,
    frames: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    families: Sequence[str],
) -> None:
    """Writes a video of four: the frame and the labels of three models.

    Args:
        path: The mp4 file.
        out: Folder with a trained model for each family.
        frames: uint8 (H, W, 3) each.
        truths: Labels (H, W) of each, 255 for none.
        families: The three models to show.
    """
    palette = label_palette()
    segmenters = [StreamingSegmenter(load_model(out / family / "last.pt")) for family in families]
    titles = ["frame, with the outlines of the truth", *(NAMES[family] for family in families)]
    with VideoWriter(path, Fraction(FRAMES_PER_SECOND), _tiled_size(frames[0], titles)) as writer:

        def write(item: tuple[np.ndarray, np.ndarray, list[np.ndarray]]) -> None:
            frame, truth, labels = item
            overlays = [overlay(frame, each, palette) for each in labels]
            writer.write(_tiled([_outlined(frame, truth), *overlays], titles))

        with WriteBehind(write) as draw:
            for frame, truth in zip(frames, truths, strict=True):
                draw((frame, truth, [each.step(frame).numpy() for each in segmenters]))


def label_palette() -> np.ndarray:
    """Colours of the synthetic classes, uint8 (256, 3); void, 255, is black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(SYNTHETIC_CLASSES.colours)] = SYNTHETIC_CLASSES.colours
    return palette


def _smoothed(
    curve: Sequence[tuple[int, float]], window: int = 10
) -> tuple[list[int], list[float]]:
    """Means of adjacent points, at the last step of each."""
    losses = np.asarray([loss for _, loss in curve])
    window = min(window, len(losses))
    means = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    return [step for step, _ in curve[window - 1 :]], means.tolist()


def _without_empty_end(panel: np.ndarray, margin: int = 8) -> np.ndarray:
    """Cuts off the rows below the last one that shows something, but for a margin."""
    shows_something = (panel != panel[-1, -1]).any(axis=(1, 2))
    return panel[: np.flatnonzero(shows_something)[-1] + 1 + margin]


def _outlined(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draws the borders between labels in white."""
    border = np.zeros(labels.shape, dtype=bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture = frame.copy()
    picture[border] = 255
    return picture


def _tiled(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    left, right = [
        contact_sheet(
            [[picture] for picture in pictures[column::2]],
            row_titles=titles[column::2],
            cell_height=pictures[0].shape[0],
        )
        for column in (0, 1)
    ]
    return np.concatenate([left, right], axis=1)


def _tiled_size(frame: np.ndarray, titles: Sequence[str]) -> tuple[int, int]:
    height, width = _tiled([frame] * 4, titles).shape[:2]
    return height, width


__all__ = [
    "label_palette",
    "street_video",
    "write_comparison",
    "write_contact_sheet",
    "write_curves",
    "write_street",
]
