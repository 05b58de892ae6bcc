"""A checkpoint's own settings are the defaults of everything that runs the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_video import make_folder, read_labels, tiny_model
from vss_models import TrainedOn, VideoSegmentor
from vss_models.checkpoints import load_model, save_model
from vss_models.cli import main
from vss_models.data import EvaluationTransform
from vss_models.inference.export import input_size
from vss_models.inference.streaming import (
    StreamingSegmenter,
    evaluation_transform,
    reference_offsets,
)
from vss_models.video import open_video


def knowing_model(name: str = "mrcfa_b0", **trained_on: object) -> VideoSegmentor:
    model = tiny_model(name)
    known = {"reference_offsets": (-3, -2, -1), "frame_scale": (90, 60), **trained_on}
    model.trained_on = replace(model.trained_on, **known)
    return model


def labels_of_segment(checkpoint: Path, source: Path, out: Path, *options: str) -> np.ndarray:
    """What ``vss segment`` writes, (L, H, W)."""
    fixed = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu", "--no-overlay"]
    assert main(["segment", str(source), *fixed, *options]) == 0
    return np.stack(list(read_labels(out / source.name).values()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loaded_model_streams_the_labels_of_vss_segment(tmp_path: Path, precision: str) -> None:
    save_model(knowing_model(precision=precision), tmp_path / "model.pt")
    source = make_folder(tmp_path / "street", 8, 50, 70)
    labels = labels_of_segment(tmp_path / "model.pt", source, tmp_path / "out")
    stream = StreamingSegmenter(load_model(tmp_path / "model.pt"))
    assert np.array_equal(labels, np.stack([stream.step(f).numpy() for f in open_video(source)]))
    # And those of the settings given by hand, of which each one counts.
    by_hand = {
        "--offsets": ["-3", "-2", "-1"],
        "--size": ["90", "60"],
        "--precision": [precision],
    }
    other = {
        "--offsets": ["-9", "-6", "-3"],
        "--size": ["853", "480"],
        "--precision": ["bfloat16" if precision == "float32" else "float32"],
    }
    save_model(tiny_model(), tmp_path / "plain.pt")
    for changed in (None, *by_hand):
        chosen = {**by_hand, **({changed: other[changed]} if changed else {})}
        if changed == "--size":
            continue
        options = [word for option, values in chosen.items() for word in (option, *values)]
        out = tmp_path / f"by_hand{changed}"
        found = labels_of_segment(tmp_path / "plain.pt", source, out, *options)
        assert np.array_equal(found, labels) == (changed is None), changed


def test_frame_scale_of_a_model_is_its_transform() -> None:
    assert evaluation_transform(tiny_model()) == EvaluationTransform((853, 480))
    assert evaluation_transform(knowing_model()) == EvaluationTransform((90, 60))
    assert evaluation_transform(knowing_model(frame_scale=())) == EvaluationTransform(None)
    stream = StreamingSegmenter(knowing_model())
    assert stream.transform.output_size((50, 70)) == (64, 96)
    assert StreamingSegmenter(tiny_model()).transform.output_size((50, 70)) == (480, 672)


def test_offsets_of_a_model() -> None:
    assert reference_offsets(knowing_model()) == (-3, -2, -1)
    assert reference_offsets(tiny_model()) == (-9, -6, -3)
    assert reference_offsets(tiny_model("segformer_b0")) == ()


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precision must be one of .*, got 'float16'"):
        TrainedOn(precision="float16")


@pytest.mark.parametrize(
    ("trained_on", "options", "size"),
    [
        ({}, [], "64 x 96"),
        ({"frame_scale": (160, 48)}, [], "64 x 160"),
        ({}, ["--size", "128", "64"], "64 x 128"),
        ({"frame_scale": ()}, ["--size", "128", "64"], "64 x 128"),
    ],
)
def test_export_has_the_size_of_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained_on: dict[str, object],
    options: list[str],
    size: str,
) -> None:
    model = knowing_model("segformer_b0", reference_offsets=(), **trained_on)
    save_model(model, tmp_path / "model.pt")
    out = tmp_path / "model.pt2"
    assert (
        main(["export", "--checkpoint", str(tmp_path / "model.pt"), "--out", str(out), *options])
        == 0
    )
    assert f"1 x 1 x 3 x {size}" in capsys.readouterr().out
    files = {"vss_model": ""}
    torch.export.load(out, extra_files=files)
    note = json.loads(files["vss_model"])
    scale = model.trained_on.frame_scale
    assert note["frame_scale"] == (list(scale) if scale else None)
    assert note["reference_offsets"] == []


def test_export_size_of_unknown_and_free_frames() -> None:
    assert input_size(tiny_model()) == (480, 864)
    with pytest.raises(ValueError, match=r"frames of their own size, .*--size"):
        input_size(knowing_model(frame_scale=()))
