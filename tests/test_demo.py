"""The demonstration, at a size that takes seconds."""

from __future__ import annotations

import json
import math

import pytest

from vss_models.cli import main
from vss_models.demo import DemoSettings, run_demo
from vss_models.demo.report import chance_iou, learning_curve

TINY = DemoSettings(num_train=2, num_val=1, frames=17, size=(64, 64), steps=2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(out, TINY)
    return out


def test_everything_it_promises_is_there(demo):
    text = (demo / "report.md").read_text()
    for family in ("mrcfa", "segformer"):
        report = json.loads((demo / family / "report.json").read_text())
        assert report["num_frames"] == TINY.num_val * TINY.frames
        assert f"{100 * report['mean_iou']:.1f}" in text
        assert (demo / family / "last.pt").exists()
        losses = [loss for _, loss in learning_curve(demo / family)]
        assert losses
        assert all(math.isfinite(loss) for loss in losses)
    for name in ("contact_sheet.png", "learning_curve.png"):
        assert f"]({name})" in text
        assert (demo / name).stat().st_size > 1000
    assert len(list((demo / "segmented").rglob("*.png"))) == TINY.frames
    assert len(list((demo / "segmented").rglob("*.mp4"))) == 1


def test_an_earlier_demonstration_is_replaced_only_on_request(demo, capsys):
    assert main(["demo", "--out", str(demo)]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path, capsys):
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 1
    assert "is not an earlier demonstration" in capsys.readouterr().err
    assert precious.read_text() == "years of work"


def test_chance_is_that_of_the_most_frequent_class():
    # Always answering a class with 60 % of the pixels: its IoU is 0.6, that of two others is 0.
    assert chance_iou([0.6, 0.0, 0.3, 0.1]) == pytest.approx(0.6 / 3)
