"""The figures of an evaluation, as a table on the terminal and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vss_models.atomic import atomic_write
from vss_models.metrics import PUBLISHED_SHORTEST_VIDEO

MEAN_IOU = "mIoU (all videos)"
MEAN_IOU_OF_LONG_VIDEOS = f"mIoU (videos of {PUBLISHED_SHORTEST_VIDEO} frames or more)"

REPORT_FILES = ("report.json", "report.md", "classes.csv")


@dataclass(frozen=True)
class EvaluationReport:
    """Figures of one evaluation; all are fractions, in 0..1.

    Attributes:
        mean_iou: Mean IoU of all videos over the classes present in the ground truth, as the
            published evaluation during training computes it.
        weighted_iou: IoU of the classes weighted with their frequencies.
        pixel_accuracy: Fraction of the labelled pixels with the right label.
        class_names: Names of the classes.
        class_iou: IoU of each class; NaN where neither truth nor prediction has it.
        class_frequency: Each class's fraction of the labelled pixels.
        mean_iou_of_long_videos: The same without the videos of 16 frames or fewer, as the published
            evaluation script computes it; NaN where it was not measured or no video is longer.
        video_consistency: By name, such as ``VC8``, the figure as published and the correct one
            (see :mod:`vss_models.metrics`); NaN where no video is long enough.
        num_videos: Videos that were evaluated.
        num_frames: Frames that were evaluated.
    """

    mean_iou: float
    weighted_iou: float
    pixel_accuracy: float
    class_names: tuple[str, ...]
    class_iou: tuple[float, ...]
    class_frequency: tuple[float, ...]
    mean_iou_of_long_videos: float = math.nan
    video_consistency: dict[str, dict[str, float]] = field(default_factory=dict)
    num_videos: int = 0
    num_frames: int = 0

    def summary(self) -> list[tuple[str, float]]:
        """Name and value of the overall figures, in the order in which they are shown."""
        rows = [
            (MEAN_IOU, self.mean_iou),
            (MEAN_IOU_OF_LONG_VIDEOS, self.mean_iou_of_long_videos),
            ("weighted IoU", self.weighted_iou),
            ("pixel accuracy", self.pixel_accuracy),
        ]
        for name, by_definition in self.video_consistency.items():
            rows += [(f"{name} ({kind})", value) for kind, value in by_definition.items()]
        return rows

    def print(self, console: Console | None = None) -> None:
        """Prints the figures as two tables."""
        console = console or Console()
        title = f"{self.num_frames} frames of {self.num_videos} videos"
        overall = Table("figure", "%", title=title)
        overall.columns[1].justify = "right"
        for name, value in self.summary():
            overall.add_row(name, _percent(value))
        classes = Table("class", "IoU %", "% of pixels")
        for column in classes.columns[1:]:
            column.justify = "right"
        for name, iou, frequency in self._classes():
            classes.add_row(name, _percent(iou), _percent(frequency))
        console.print(classes)
        console.print(overall)

    def markdown(self) -> str:
        """The figures as Markdown tables."""
        lines = [f"{self.num_frames} frames of {self.num_videos} videos", ""]
        lines += ["| figure | % |", "|---|---:|"]
        lines += [f"| {name} | {_percent(value)} |" for name, value in self.summary()]
        lines += ["", "| class | IoU % | % of pixels |", "|---|---:|---:|"]
        lines += [f"| {n} | {_percent(i)} | {_percent(s)} |" for n, i, s in self._classes()]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path | str, overwrite: bool = False) -> None:
        """Writes ``report.json``, ``report.md`` and ``classes.csv``.

        Args:
            folder: Where to; made if need be.
            overwrite: Whether existing reports may be replaced.

        Raises:
            FileExistsError: If a report is there and ``overwrite`` is not set.
        """
        folder = Path(folder)
        refuse_existing([folder / name for name in REPORT_FILES], overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        rows = ["class,iou,pixel_frequency"]
        rows += [
            f"{name},{_csv(iou)},{_csv(frequency)}" for name, iou, frequency in self._classes()
        ]
        contents = (json.dumps(_plain(asdict(self)), indent=2) + "\n", self.markdown())
        for name, text in zip(REPORT_FILES, (*contents, "\n".join(rows) + "\n"), strict=True):
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def _classes(self) -> list[tuple[str, float, float]]:
        return list(zip(self.class_names, self.class_iou, self.class_frequency, strict=True))


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raises FileExistsError if one of the paths exists and may not be overwritten."""
    for path in paths:
        if not overwrite and path.exists():
            raise FileExistsError(
                f"{path} exists: choose another folder (--report.folder) or allow replacing it "
                "(--report.overwrite true)"
            )


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _csv(fraction: float) -> str:
    return "" if math.isnan(fraction) else f"{fraction:.6f}"


def _plain(value: Any) -> Any:
    """The value with NaN, which JSON does not have, as None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
