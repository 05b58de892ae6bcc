"""The demonstration: make data, train models alike, compare them, segment a video, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vss_models.commands import segment
from vss_models.data import make_synthetic_dataset
from vss_models.demo.figures import frames_to_show, judge_all
from vss_models.demo.pictures import (
    street_video,
    write_comparison,
    write_contact_sheet,
    write_curves,
    write_street,
)
from vss_models.demo.report import write_report
from vss_models.demo.settings import FAMILIES, DemoSettings
from vss_models.demo.train import FIRST, train_all, train_first

MARK = ".vss-demo"
"""A file that tells a demonstration's folder, which may be replaced, from anybody else's."""


def run_demo(
    out: Path | str, settings: DemoSettings | None = None, overwrite: bool = False
) -> Path:
    """Runs the demonstration.

    A per-frame SegFormer is trained first. MRCFA and CFFM start from it and are compared with what
    SegFormer reaches in as many steps more, on held-out videos and by kind of disturbance.

    Args:
        out: Folder for everything the demonstration makes.
        settings: Sizes and steps.
        overwrite: Whether the folder of an earlier demonstration may be replaced.

    Returns:
        The report, a Markdown file.

    Raises:
        FileExistsError: ``out`` exists and is not an earlier demonstration, or may not be replaced.
        RuntimeError: If a training fails.
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
    with _timed(seconds, f"train the common start, SegFormer, for {settings.first_steps} steps"):
        start = train_first(data, out, settings)
    with _timed(seconds, f"train every model for {settings.steps} steps from there"):
        train_all(data, out, start, settings)
    with _timed(seconds, "evaluate"):
        shown = frames_to_show(data, settings)
        names = {(video, frame) for _, video, frame in shown}
        runs = [("segformer", out / FIRST), *((family, out / family) for family in FAMILIES)]
        first, *results = judge_all(runs, data, settings, names)
    with _timed(seconds, "make pictures and videos"):
        write_contact_sheet(out / "contact_sheet.png", data, settings, shown, results)
        write_curves(out / "learning_curves.png", first.curve, results)
        frames, truths = street_video(settings)
        write_street(out / "street.mp4", frames)
        write_comparison(out / "comparison.mp4", out, frames, truths, FAMILIES)
        options = ["--checkpoint", str(out / "cffm" / "last.pt"), "--out", str(out / "segmented")]
        status = segment.main([str(out / "street.mp4"), *options])
        if status != 0:
            raise RuntimeError(f"vss segment ended with status {status}")
    report = out / "report.md"
    write_report(report, settings, first.figures, results, seconds)
    return report


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
