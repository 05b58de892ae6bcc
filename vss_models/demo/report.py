"""The demonstration's report in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vss_models.atomic import atomic_write
from vss_models.data.synthetic_video import UNDISTURBED
from vss_models.demo.figures import KINDS, Figures, ModelResult
from vss_models.demo.settings import DemoSettings
from vss_models.training import EvaluationReport

_FIGURES: dict[str, Callable[[EvaluationReport], float]] = {
    "mIoU": lambda report: report.mean_iou,
    "pixel accuracy": lambda report: report.pixel_accuracy,
    "VC8 (corrected)": lambda report: report.video_consistency["VC8"]["corrected"],
    "VC8 (published)": lambda report: report.video_consistency["VC8"]["published"],
    "VC16 (corrected)": lambda report: report.video_consistency["VC16"]["corrected"],
}


def write_report(
    path: Path,
    settings: DemoSettings,
    start: Figures,
    results: Sequence[ModelResult],
    seconds: dict[str, float],
) -> None:
    """Writes and prints the report.

    Args:
        path: The Markdown file.
        settings: What was made and trained.
        start: Figures of the SegFormer that all models started from.
        results: The models, the per-frame baseline first.
        seconds: Duration of each stage.
    """
    text = _markdown(settings, start, results, seconds)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\nReport: {path}")


def chance_iou(class_fractions: Sequence[float]) -> float:
    """Mean IoU of always naming the most frequent class, over the classes that occur."""
    present = [fraction for fraction in class_fractions if fraction > 0]
    return max(present) / len(present)


def comparison(results: Sequence[ModelResult]) -> str:
    """Says which models did better than the baseline and than their own per-frame heads."""
    baseline, *temporal = results
    sentences = []
    for result in temporal:
        assert result.per_frame is not None
        assert result.per_frame_at_8 is not None
        report = result.figures.report
        own, own_at_8 = result.per_frame.report, result.per_frame_at_8.report
        vc8 = _FIGURES["VC8 (corrected)"]
        consistency = vc8(report) - vc8(baseline.figures.report)
        sentences.append(
            f"{result.name} ends {_points(report.mean_iou - baseline.figures.report.mean_iou)} of "
            f"mIoU and {_points(consistency)} of consistency (VC8, corrected) against "
            f"{baseline.name}. Against the per-frame head of its own network that is "
            f"{_points(report.mean_iou - own.mean_iou)} of mIoU, and where that head too is read "
            f"at 1/8 of the image, {_points(report.mean_iou - own_at_8.mean_iou)}."
        )
    return " ".join(sentences)


def _markdown(
    settings: DemoSettings,
    start: Figures,
    results: Sequence[ModelResult],
    seconds: dict[str, float],
) -> str:
    report = results[0].figures.report
    height, width = settings.size
    columns: list[tuple[str, Figures]] = [("SegFormer, the common start", start)]
    for result in results:
        columns.append((result.name, result.figures))
        if result.per_frame is not None:
            columns.append((f"per-frame head of {result.name}", result.per_frame))
        if result.per_frame_at_8 is not None:
            columns.append(("the same, read at 1/8", result.per_frame_at_8))
    chance = 100 * chance_iou(report.class_frequency)
    return "\n".join(
        [
            "# Demonstration",
            "",
            f"A small per-frame SegFormer was trained for {settings.first_steps} steps on made-up "
            f"street videos of {width}x{height} pixels. From there MRCFA and CFFM, which also look "
            f"at the frames {', '.join(map(str, settings.offsets))}, and SegFormer itself were "
            f"trained for {settings.steps} steps more, all with the same recipe on "
            f"{settings.batch_size} targets a step (weight of the per-frame loss: "
            f"{settings.auxiliary_weight}). They were evaluated on {report.num_frames} "
            f"frames of {report.num_videos} videos that none of them has seen "
            f"(seed {settings.seed}, {torch.get_num_threads()} CPU threads).",
            "",
            comparison(results),
            "",
            "MRCFA and CFFM decode at 1/8 of the image, SegFormer at 1/4. On frames of this size "
            "that alone costs them the edges, and thin things such as poles; the figures read at "
            "1/8 tell it apart from what the references give.",
            "",
            "This is one short run with one seed on made-up videos. It shows that the system works "
            "and how to compare; it does not show which method is better on real ones.",
            "",
            *_table([[name, *_overall(figures)] for name, figures in columns], list(_FIGURES)),
            "",
            f"Always naming the most frequent class would give an mIoU of {chance:.1f}. The models "
            "have "
            + ", ".join(f"{r.name} {r.parameters / 1e6:.2f}" for r in results)
            + " million parameters.",
            "",
            "## By kind of disturbance",
            "",
            "mIoU of the frames of each kind / consistency with the frame before (of the pixels "
            "whose label stays, how many are right in both), %:",
            "",
            *_kinds(columns),
            "",
            "![Frames of each kind, truth and labels](contact_sheet.png)",
            "",
            "## Training",
            "",
            "The curves show one figure for all models: the cross-entropy of the prediction that "
            "is evaluated, on training crops.",
            "",
            "![Learning curves](learning_curves.png)",
            "",
            *_table([[name, f"{value:.0f}"] for name, value in seconds.items()], ("seconds",)),
            "",
            "## To look at",
            "",
            "- `comparison.mp4`: a new video, larger than the ones above, beside the labels of all "
            "three models.",
            "- `segmented/`: what `vss segment street.mp4 --checkpoint cffm/last.pt --out "
            "segmented` makes of it: labels and an overlay with a legend.",
            "- `segformer/`, `mrcfa/`, `cffm/`: trained models (`last.pt`), logs and figures by "
            "class.",
            "",
        ]
    )


def _overall(figures: Figures) -> list[str]:
    return [f"{100 * value(figures.report):.1f}" for value in _FIGURES.values()]


def _kinds(columns: Sequence[tuple[str, Figures]]) -> list[str]:
    rows = []
    for kind in KINDS:
        if kind not in columns[0][1].by_kind:
            continue
        cells = [
            f"{100 * figures.by_kind[kind].mean_iou:.1f} / "
            f"{100 * figures.by_kind[kind].consistency:.1f}"
            for _, figures in columns
        ]
        name = "undisturbed" if kind == UNDISTURBED else kind
        rows.append([f"{name} ({columns[0][1].by_kind[kind].frames} frames)", *cells])
    return _table(rows, [name for name, _ in columns])


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    return [
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


__all__ = ["chance_iou", "comparison", "write_report"]
