"""The demonstration, at a size that takes seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vss_models.checkpoints import load_model
from vss_models.cli import main
from vss_models.data import read_disturbances
from vss_models.data.synthetic_video import UNDISTURBED
from vss_models.demo import DemoSettings, run_demo
from vss_models.demo.figures import FiguresByKind, frames_to_show, held_out, image_and_truth
from vss_models.demo.pictures import label_palette
from vss_models.demo.report import chance_iou
from vss_models.demo.settings import FAMILIES
from vss_models.demo.train import FIRST, TARGET_LOSS, learning_curve, train_first
from vss_models.metrics import SegmentationMetrics, VideoConsistency

TINY = DemoSettings(
    num_train=2,
    num_val=1,
    frames=17,
    size=(64, 96),
    crop=(64, 64),
    batch_size=2,
    first_steps=3,
    steps=2,
    street_frames=5,
    street_size=(96, 128),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(out, TINY)
    return out


def test_everything_it_promises_is_there(demo: Path) -> None:
    text = (demo / "report.md").read_text()
    for run in (FIRST, *FAMILIES):
        report = json.loads((demo / run / "report.json").read_text())
        assert report["num_frames"] == TINY.num_val * TINY.frames
        assert f"{100 * report['mean_iou']:.1f}" in text
    for name in ("contact_sheet.png", "learning_curves.png"):
        assert f"]({name})" in text
        assert (demo / name).stat().st_size > 1000
    assert len(list((demo / "segmented").rglob("*.png"))) == TINY.street_frames
    assert len(list((demo / "segmented").rglob("*.mp4"))) == 1


def test_all_models_start_from_the_same_segformer(demo: Path) -> None:
    start = load_model(demo / FIRST / "last.pt")
    for family in FAMILIES:
        log = (demo / family / "train.log").read_text()
        assert f"{demo / FIRST / 'last.pt'} (segformer_b0 with 9 classes" in log
        model = load_model(demo / family / "last.pt")
        # Two steps of the warm-up move a weight by little, but they do move it.
        moved = [
            (value - start.get_parameter(name)).abs().max().item()
            for name, value in model.named_parameters()
            if name.startswith(("backbone.", "head.fusion.", "head.classifier."))
        ]
        assert 0 < max(moved) < 0.01
        assert model.trained_on.reference_offsets == (TINY.offsets if model.num_references else ())


def test_the_curves_are_of_one_figure(demo: Path) -> None:
    # SegFormer's whole loss is that figure; MRCFA's and CFFM's have the per-frame loss beside it.
    for family in FAMILIES:
        curve = learning_curve(demo / family, TARGET_LOSS[family])
        total = learning_curve(demo / family, "train/loss")
        assert [step for step, _ in curve] == [step for step, _ in total]
        assert all(math.isfinite(loss) for _, loss in curve)
        if family == "segformer":
            assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in total])
        else:
            assert all(part < whole for (_, part), (_, whole) in zip(curve, total, strict=True))


def test_the_comparison_is_a_video_of_four(demo: Path) -> None:
    with av.open(str(demo / "comparison.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == TINY.street_frames
    height, width = TINY.street_size
    assert frames[0].shape[0] > 2 * height
    assert frames[0].shape[1] > 2 * width


def test_shown_frames_are_of_each_kind_and_have_their_references(demo: Path) -> None:
    shown = frames_to_show(demo / "data", TINY)
    happened = read_disturbances(demo / "data")
    kinds = {
        kind for (video, frame), kind in happened.items() if video[0] == "v" and int(frame) >= 3
    }
    assert {kind for kind, _, _ in shown} == kinds
    dataset = held_out(demo / "data", TINY)
    for kind, video, frame in shown:
        assert happened[video, frame] == kind
        assert int(frame) >= 3
        image, truth = image_and_truth(dataset, video, frame)
        assert image.shape == (*TINY.size, 3)
        assert truth.shape == TINY.size
        assert set(np.unique(truth)) <= {*range(9), 255}


def test_figures_by_kind_are_those_of_their_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 5, 6), generator=generator)
    labels[:, 1:] = torch.where(torch.rand(2, 3, 5, 6, generator=generator) < 0.8, labels[:, :1], 2)
    predicted = torch.where(torch.rand(2, 4, 5, 6, generator=generator) < 0.7, labels, 1)
    kinds = {("a", "0"): "glare", ("a", "1"): "glare", ("a", "2"): UNDISTURBED, ("a", "3"): "glare",
             ("b", "0"): UNDISTURBED, ("b", "1"): "glare", ("b", "2"): UNDISTURBED,
             ("b", "3"): UNDISTURBED}  # fmt: skip
    collected = FiguresByKind(kinds, 3)
    for video, frame in kinds:
        at = ("ab".index(video), int(frame))
        collected.update(video, frame, predicted[at], labels[at])
    figures = collected.compute()
    assert set(figures) == {UNDISTURBED, "glare"}
    for kind in figures:
        of_kind = [("ab".index(v), int(f)) for (v, f), k in kinds.items() if k == kind]
        segmentation = SegmentationMetrics(3)
        ratios = []
        for video, frame in of_kind:
            segmentation.update(predicted[video, frame], labels[video, frame])
            if frame:
                pair = slice(frame - 1, frame + 1)
                metric = VideoConsistency(2, "corrected")
                metric.update(predicted[video, pair], labels[video, pair])
                ratios.append(float(metric.compute()))
        assert figures[kind].frames == len(of_kind)
        assert figures[kind].mean_iou == pytest.approx(float(segmentation.compute()["mean_iou"]))
        assert figures[kind].consistency == pytest.approx(np.mean(ratios))


def test_a_failed_training_says_why(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"segformer_start ended with status 1, see .*train\.log: .*absent"
    ):
        train_first(tmp_path / "absent", tmp_path / "out", TINY)


def test_void_is_black_and_classes_are_not() -> None:
    palette = label_palette()
    assert palette[255].tolist() == [0, 0, 0]
    assert palette[:9].any(axis=1).all()


def test_an_earlier_demonstration_is_replaced_only_on_request(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(demo)]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 1
    assert "is not an earlier demonstration" in capsys.readouterr().err
    assert precious.read_text() == "years of work"


def test_chance_is_that_of_the_most_frequent_class() -> None:
    # Always answering a class with 60 % of the pixels: its IoU is 0.6, that of two others is 0.
    assert chance_iou([0.6, 0.0, 0.3, 0.1]) == pytest.approx(0.6 / 3)


@pytest.mark.parametrize("option", ["--steps", "--first-steps"])
def test_a_demonstration_without_steps_is_refused_at_once(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), option, "0"]) == 1
    name = option.strip("-").replace("-", "_")
    assert capsys.readouterr().err == f"vss demo: {name} must be at least 1, got 0\n"
    assert not (tmp_path / "demo").exists()
