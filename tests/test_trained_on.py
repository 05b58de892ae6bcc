"""What a model knows of its data: checked where it is set, kept and refused by checkpoints."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch

import vss_models
from vss_models import CheckpointError, TrainedOn, create_model, load_model, save_model
from vss_models.inference.streaming import StreamingSegmenter

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"class_names": 5}, r"class_names must be strings of 1 to 500 letters, got 5"),
    ({"class_names": ("a", "")}, "class_names must be"),
    ({"class_names": ("a", "b" * 501)}, "class_names must be"),
    ({"class_names": "ab"}, "class_names must be"),
    ({"class_colours": ((0, 0, 999), (0, 0, 0))}, r"class_colours must be triples .* 0\.\.255"),
    ({"class_colours": ((0, 0), (0, 0, 0))}, "class_colours must be"),
    ({"class_colours": ((0, 0, True), (0, 0, 0))}, "class_colours must be"),
    ({"reference_offsets": ("-3", "-2", "-1")}, "reference_offsets must be ascending negative"),
    ({"reference_offsets": (-1, -2, -3)}, "reference_offsets must be"),
    ({"reference_offsets": (-2, -1, 0)}, "reference_offsets must be"),
    ({"frame_scale": (853, 0)}, r"frame_scale must be two integers 1\.\.65535"),
    ({"frame_scale": (853.0, 480)}, "frame_scale must be"),
    ({"frame_scale": (853, 480, 3)}, "frame_scale must be"),
]
MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"class_names": ("a",)}, "class_names must have 2 entries, got 1"),
    ({"class_colours": ((0, 0, 0),) * 3}, "class_colours must have 2 entries, got 3"),
    ({"reference_offsets": (-2, -1)}, "reference_offsets must have 3 entries, got 2"),
]


def test_sequences_become_tuples_and_stay_as_they_are() -> None:
    known = TrainedOn(["a", "b"], [[0, 0, 255], [1, 2, 3]], [-3, -1], [64, 48])
    assert known == TrainedOn(("a", "b"), ((0, 0, 255), (1, 2, 3)), (-3, -1), (64, 48))
    with pytest.raises(FrozenInstanceError):
        known.class_names = ("c",)  # type: ignore[misc]


@pytest.mark.parametrize(("entries", "message"), WRONG)
def test_wrong_entries_are_named(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainedOn(**entries)


@pytest.mark.parametrize(("entries", "message"), WRONG + MISFITS)
def test_a_file_with_wrong_entries_is_refused(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.pt"
    save_model(create_model("mrcfa_b1", 2, **SMALL), path)
    torch.save({**torch.load(path, weights_only=True), **entries}, path)
    with pytest.raises(CheckpointError, match=rf"model\.pt .*{message}"):
        load_model(path)


@pytest.mark.parametrize(("entries", "message"), MISFITS)
def test_a_model_with_entries_of_another_model_is_not_saved(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    model = create_model("mrcfa_b1", 2, **SMALL)
    model.trained_on = TrainedOn(**entries)
    with pytest.raises(ValueError, match=message):
        save_model(model, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_public_names_come_from_the_package() -> None:
    assert vss_models.StreamingSegmenter is StreamingSegmenter
    assert all(hasattr(vss_models, name) for name in vss_models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Streaming'"):
        vss_models.Streaming  # noqa: B018


def test_a_model_alone_does_not_import_what_reading_frames_needs() -> None:
    program = "import sys; from vss_models import load_model; print('torchvision' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
