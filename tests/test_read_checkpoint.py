"""One reader under all loaders: kinds of files, damage, weights that are NaN, false claims."""

from __future__ import annotations

import os
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vss_models import CheckpointError, VideoSegmentor, create_model, load_model, open_model
from vss_models.checkpoints import (
    RUN_KEY,
    load_backbone,
    load_pretrained,
    load_released,
    read_checkpoint,
    save_model,
    save_released,
)
from vss_models.checkpoints.read import MODEL, PUBLISHED, RUN
from vss_models.model import TrainedOn

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}


def small(name: str = "mrcfa_b1", num_classes: int = 3) -> VideoSegmentor:
    return create_model(name, num_classes, **SMALL)


def save_run(model: VideoSegmentor, path: Path) -> None:
    """Writes what a training run's checkpoint has of its model."""
    save_model(model, path)
    content = torch.load(path, weights_only=True)
    state = {f"model.{key}": value for key, value in content.pop("state_dict").items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(1)}, RUN_KEY: content}, path)


SAVE: dict[str, Callable[[VideoSegmentor, Path], None]] = {
    MODEL: save_model,
    RUN: save_run,
    PUBLISHED: save_released,
}
LOAD: dict[str, Callable[[Path], Any]] = {
    "open_model": open_model,
    "load_released": lambda path: load_released(small(), path, verbose=False),
    "load_pretrained": lambda path: load_pretrained(small(), path, verbose=False),
    "load_backbone": lambda path: load_backbone(small(), path, verbose=False),
}


@pytest.mark.parametrize("kind", SAVE)
def test_kind_tensors_and_description(kind: str, tmp_path: Path) -> None:
    model = small()
    model.trained_on = TrainedOn(("a", "b", "c"))
    SAVE[kind](model, tmp_path / "file")
    found = read_checkpoint(tmp_path / "file")
    assert found.kind == kind
    if kind == PUBLISHED:
        assert found.description == {}
        assert "decode_head.linear_pred.weight" in found.state
        return
    assert (found.description["name"], found.description["num_classes"]) == ("mrcfa_b1", 3)
    assert found.description["class_names"] == ("a", "b", "c")
    assert found.state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(found.state[key], tensor), key


def test_a_run_is_named_where_a_model_is_asked_for(tmp_path: Path) -> None:
    save_run(small(), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"a training run: use open_model"):
        load_model(tmp_path / "last.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("load", "kind"),
    [("open_model", MODEL), ("open_model", RUN), ("load_released", PUBLISHED)]
    + [(load, kind) for load in ("load_pretrained", "load_backbone") for kind in SAVE],
)
def test_weights_that_are_not_finite_are_refused(
    load: str, kind: str, value: float, tmp_path: Path
) -> None:
    model = small()
    with torch.no_grad():
        model.backbone.stages[1].norm.weight[3:5] = value
    SAVE[kind](model, tmp_path / "file")
    name = "backbone.norm2.weight" if kind == PUBLISHED else "backbone.stages.1.norm.weight"
    with pytest.raises(CheckpointError, match=rf"file.*2 of the 16 numbers of {name} are NaN"):
        LOAD[load](tmp_path / "file")


def test_tensors_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    """Masks of other people's models hold minus infinity."""
    save_released(small(), tmp_path / "file")
    content = torch.load(tmp_path / "file", weights_only=True)
    content["state_dict"]["decode_head.conv_seg.weight"] = torch.full((2,), float("nan"))
    torch.save(content, tmp_path / "file")
    assert load_released(small(), tmp_path / "file", verbose=False).complete


@pytest.mark.parametrize("kind", SAVE)
def test_every_changed_byte_of_the_weights_is_noticed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    SAVE[kind](small(), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    generator = np.random.default_rng(0)
    for entry in generator.choice(np.array(records, object), 12, replace=False):
        header = entry.header_offset
        name_length, extra_length = struct.unpack("<HH", content[header + 26 : header + 30])
        start = header + 30 + name_length + extra_length
        changed = bytearray(content)
        changed[start + int(generator.integers(entry.file_size))] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"file is damaged: the checksum of .*data"):
            read_checkpoint(path)
    changed = bytearray(content)
    changed[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_an_archive_larger_than_its_file_is_refused_at_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(CheckpointError, match="bomb is damaged"):
        read_checkpoint(tmp_path / "bomb")


def test_files_of_old_pytorch_are_read(tmp_path: Path) -> None:
    model = small()
    save_released(model, tmp_path / "file")
    content = torch.load(tmp_path / "file", weights_only=True)
    torch.save(content, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert load_released(small(), tmp_path / "old", verbose=False).complete


def test_a_named_pipe_does_not_wait_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    errors: list[BaseException] = []

    def read() -> None:
        try:
            read_checkpoint(tmp_path / "pipe")
        except CheckpointError as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert "pipe is a named pipe" in str(errors[0])


FALSE_CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is none": ({"name": ["mrcfa_b1"]}, r"its name is \['mrcfa_b1'\]"),
    "classes without end": ({"num_classes": 10**12}, "it has 1000000000000 classes"),
    "classes that are none": ({"num_classes": True}, "it has True classes"),
    "other classes": ({"num_classes": 60_000}, "size mismatch"),
    "settings that are none": ({"overrides": 5}, "it has no overrides"),
    "blocks without end": ({"overrides": {"depths": [10**7, 1, 1, 1]}}, "depths must be a number"),
    "levels without end": ({"overrides": {"depths": [1] * 10**5}}, "depths is nested too deeply"),
    "references without end": ({"overrides": {"num_references": 10**7}}, "num_references must be"),
    "widths without end": ({"overrides": {"dims": [10**9] * 4}}, "dims must be a number up to"),
    "other widths": ({"overrides": {"dims": [65_536] * 4}}, "does not describe a model"),
    "no heads": ({"overrides": {**SMALL, "num_heads": [0, 1, 1, 1]}}, "does not describe a model"),
    "numbers that are none": ({"overrides": {"dropout": float("nan")}}, "dropout must be a number"),
    "nested settings": ({"overrides": {"depths": [[[[[1]]]]]}}, "depths is nested too deeply"),
    "unknown settings": ({"overrides": {"code": "print()"}}, "no settings code"),
    "a list of weights": ({"state_dict": [1, 2]}, "it has no tensors by name"),
    "weights by number": ({"state_dict": {1: torch.ones(1)}}, "it has no tensors by name"),
    "endless weights": (
        {"state_dict": {"head.classifier.bias": torch.ones(1).expand(10**12)}},
        "head.classifier.bias overlaps itself",
    ),
}


@pytest.mark.parametrize("claim", FALSE_CLAIMS)
@pytest.mark.parametrize("kind", [MODEL, RUN])
def test_false_claims_are_refused_in_no_time(claim: str, kind: str, tmp_path: Path) -> None:
    entries, message = FALSE_CLAIMS[claim]
    path = tmp_path / "model.pt"
    SAVE[kind](small(), path)
    content = torch.load(path, weights_only=True)
    for key, value in entries.items():
        at_top = kind == MODEL or key == "state_dict"
        (content if at_top else content[RUN_KEY])[key] = value
    torch.save(content, path)
    before = time.process_time()
    with pytest.raises(CheckpointError, match=rf"model\.pt(.|\n)*{message}"):
        open_model(path)
    assert time.process_time() - before < 20


def test_a_released_classifier_without_classes_is_refused(tmp_path: Path) -> None:
    torch.save({"decode_head.linear_pred.weight": torch.tensor(1.0)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"it has no decode_head\.linear_pred\.weight"):
        open_model(tmp_path / "file", "mrcfa_b1")
