"""``vss segment`` on files made on the fly, with tiny models."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.recorded_calls import RecordedCalls
from tests.support.tiny_video import (
    SIZE,
    make_folder,
    make_video,
    read_labels,
    segment,
    tiny_model,
)
from vss_models import create_model
from vss_models.checkpoints import CheckpointError, open_model, save_model, save_released
from vss_models.cli import main
from vss_models.commands import segment as segment_command
from vss_models.data import EvaluationTransform, generated_colours, numbered_classes
from vss_models.inference.frame_program import FrameProgram
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.inference.video_to_files import OutputSettings, segment_video
from vss_models.video import open_video


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_video_file(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_video(tmp_path / "clip.mp4")
    assert segment(source, tmp_path / "out", checkpoint) == 0
    assert "12 frames in" in capsys.readouterr().out

    stream = StreamingSegmenter(open_model(checkpoint), transform=EvaluationTransform((96, 64)))
    expected = [stream.step(frame).numpy() for frame in open_video(source)]
    labels = read_labels(tmp_path / "out" / "clip")
    assert list(labels) == [f"{number:06d}" for number in range(12)]
    assert all(np.array_equal(*pair) for pair in zip(labels.values(), expected, strict=True))
    assert len(np.unique(expected)) > 1

    overlay = open_video(tmp_path / "out" / "clip" / "overlay.mp4")
    assert overlay.rate == 24
    assert overlay.num_frames == 12
    assert overlay.size[0] == 46
    assert overlay.size[1] > 62
    assert sorted(p.name for p in (tmp_path / "out" / "clip").iterdir()) == [
        "labels",
        "overlay.mp4",
    ]


@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_a_recorded_run_writes_the_same_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command does on a GPU by default, but for the GPU; it says how fast it was."""
    save_model(tiny_model(name), tmp_path / "model.pt")
    captures: list[RecordedCalls] = []

    class Recorded(StreamingSegmenter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            assert arguments[-1] == "auto"
            precision, capture = self._program.precision, RecordedCalls()
            self._program = FrameProgram(
                self.model, self.transform, self._span, precision, capture=capture
            )
            captures.append(capture)

    source = make_video(tmp_path / "clip.mp4")
    assert segment(source, tmp_path / "plain", tmp_path / "model.pt") == 0
    monkeypatch.setattr(segment_command, "StreamingSegmenter", Recorded)
    assert segment(source, tmp_path / "fast", tmp_path / "model.pt") == 0
    # Two recordings while it warms up; then every frame but the first is a replay.
    assert [(capture.recorded, capture.replayed >= 11) for capture in captures] == [(2, True)]
    plain, fast = (read_labels(tmp_path / which / "clip") for which in ("plain", "fast"))
    assert list(fast) == list(plain)
    assert all(np.array_equal(fast[key], label) for key, label in plain.items())
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert all(re.search(r": 12 frames in \d+\.\d s \(\d+\.\d frames/s\)$", line) for line in shown)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_labels_of_a_gpu(name: str, tmp_path: Path) -> None:
    save_model(tiny_model(name), tmp_path / "model.pt")
    source = make_video(tmp_path / "clip.mp4")
    for device in ("cpu", "cuda"):
        assert segment(source, tmp_path / device, tmp_path / "model.pt", "--device", device) == 0
    cpu, gpu = (read_labels(tmp_path / device / "clip") for device in ("cpu", "cuda"))
    differing = [(gpu[key] != label).mean() for key, label in cpu.items()]
    assert np.mean(differing) < 1e-2


@pytest.mark.parametrize("name", ["cffm_b0", "segformer_b0"])
def test_folder_of_frames_of_odd_size(tmp_path: Path, name: str) -> None:
    save_model(tiny_model(name), tmp_path / "model.pt")
    source = tmp_path / "street"
    source.mkdir()
    halves = np.full((33, 47, 3), 20, np.uint8)
    halves[:, 24:] = (250, 180, 90)
    for number in range(5):
        Image.fromarray(halves).save(source / f"frame_{number}.png")
    out = tmp_path / "out"
    assert segment(source, out, tmp_path / "model.pt", "--rate", "29.97", "--opacity", "1") == 0
    labels = read_labels(out / "street")
    assert list(labels) == [f"frame_{number}" for number in range(5)]
    assert all(label.shape == (33, 47) for label in labels.values())
    overlay = open_video(out / "street" / "overlay.mp4")
    assert float(overlay.rate) == pytest.approx(29.97, abs=1e-3)
    assert overlay.num_frames == 5
    # At full opacity the video shows the colours of the classes; H.264 only blurs their borders.
    frame = next(iter(overlay))[:33, :47].astype(int)
    colours = np.array(generated_colours(5))
    nearest = np.abs(frame[:, :, None] - colours).sum(-1).argmin(-1)
    label = labels["frame_0"]
    inside = np.zeros((33, 47), bool)
    for row, column in itertools.product(range(4, 29), range(4, 43)):
        around = label[row - 4 : row + 5, column - 4 : column + 5]
        inside[row, column] = (around == label[row, column]).all()
    assert inside.sum() > 50
    assert len(np.unique(label[inside])) > 1
    assert np.array_equal(nearest[inside], label[inside])


def test_folder_of_videos(tmp_path: Path, checkpoint: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4", 3)
    make_video(tmp_path / "in" / "b.mov", 3, 64, 48)
    make_folder(tmp_path / "in" / "b", 2)
    make_folder(tmp_path / "in" / "c" / "origin", 2)
    (tmp_path / "in" / "notes.txt").write_text("not a video")
    assert segment(tmp_path / "in", tmp_path / "out", checkpoint, "--no-overlay") == 0
    found = {folder.name: len(read_labels(folder)) for folder in (tmp_path / "out").iterdir()}
    assert found == {"a": 3, "b.mov": 3, "b": 2, "c": 2}
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_truncated_video_keeps_what_was_decoded(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_video(tmp_path / "in" / "a.mp4", 40)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 6 // 10])
    make_video(tmp_path / "in" / "b.mp4", 2)
    (tmp_path / "in" / "c.mp4").write_text("not a video")
    out = tmp_path / "out"
    assert segment(tmp_path / "in", out, checkpoint) == 1

    decoded = len(read_labels(out / "a"))
    assert 0 < decoded < 40
    assert open_video(out / "a" / "overlay.mp4").num_frames == decoded
    errors = capsys.readouterr().err
    assert f"{source}: " in errors
    assert f"{decoded} frames were decoded" in errors
    assert f"{out / 'a'} holds the frames so far" in errors
    assert "c.mp4: not a video" in errors
    # The others are labelled all the same, and the third left nothing behind.
    assert len(read_labels(out / "b")) == 2
    assert not (out / "c").exists()


def test_existing_output_is_kept_unless_told(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_video(tmp_path / "in" / "clip.mp4", 4)
    out = tmp_path / "out"
    assert segment(source, out, checkpoint) == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert segment(source, out, checkpoint) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    make_video(source, 2)
    assert segment(source, out, checkpoint, "--overwrite") == 0
    assert len(read_labels(out / "clip")) == 2
    assert open_video(out / "clip" / "overlay.mp4").num_frames == 2


def test_one_existing_output_stops_the_run_before_it_starts(
    tmp_path: Path, checkpoint: Path
) -> None:
    make_video(tmp_path / "in" / "a.mp4", 2)
    make_video(tmp_path / "in" / "b.mp4", 2)
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "overlay.mp4").touch()
    assert segment(tmp_path / "in", tmp_path / "out", checkpoint) == 1
    assert not (tmp_path / "out" / "a").exists()


def test_bad_options_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_video(tmp_path / "clip.mp4", 2)
    frames = make_folder(tmp_path / "frames", 2)
    empty = tmp_path / "empty"
    empty.mkdir()
    given = ["--checkpoint", str(checkpoint)]
    cases = [
        ([source], "--checkpoint is missing"),
        ([source, "--random-weights"], "--random-weights needs --model"),
        ([source, *given, "--opacity", "2"], "opacity must lie in 0..1"),
        ([source, *given, "--no-overlay", "--no-labels"], "nothing to write"),
        ([source, *given, "--rate", "-1"], "rate must be above 0"),
        ([source, *given, "--size", "0", "5"], "scale must be two numbers"),
        ([source, *given, "--offsets", "-2", "-1"], "offsets must name the 3 references"),
        ([source, *given, "--device", "gpu"], "--device must be a device"),
        ([source, *given, "--num-classes", "7"], "a checkpoint knows its classes"),
        ([empty, *given], "holds no video"),
        ([frames, *given, "--out", str(tmp_path)], "would lie within the input"),
    ]
    for options, message in cases:
        with pytest.raises(SystemExit) as caught:
            main(["segment", "--out", str(tmp_path / "out"), *map(str, options)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    missing = tmp_path / "missing.mp4"
    assert segment(missing, tmp_path / "out", checkpoint) == 1
    assert "missing.mp4: no such video" in capsys.readouterr().err
    assert segment(source, tmp_path / "out", checkpoint, "--model", "cffm_b0") == 1
    assert "is of the model mrcfa_b0, not of cffm_b0" in capsys.readouterr().err
    assert segment(source, tmp_path / "out", source) == 1
    assert "cannot be read as a file of weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_random_weights_and_class_list(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "street", 2)
    (tmp_path / "classes.txt").write_text("1 road 255 0 0\n2 tree 0 255 0\n3 sky 0 0 255\n")
    options = ["--random-weights", "--model", "segformer_b0", "--num-classes", "3", *SIZE]
    options += ["--classes", str(tmp_path / "classes.txt"), "--device", "cpu"]
    assert main(["segment", str(source), "--out", str(tmp_path / "out"), *options]) == 0
    with Image.open(tmp_path / "out" / "street" / "labels" / "frame_0.png") as picture:
        palette = np.array(picture.getpalette()).reshape(-1, 3)
    assert palette[:3].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_files_of_every_kind_open(tmp_path: Path) -> None:
    model = create_model("segformer_b0", 3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.single_frame(images)
    assert model.config is not None
    save_model(model, tmp_path / "own.pt")
    save_released(model, tmp_path / "released.pth")
    run = {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "vss_model": {"name": "segformer_b0", "num_classes": 3, "overrides": {}, "seed": 0},
    }
    torch.save(run, tmp_path / "run.ckpt")
    for name in ("own.pt", "released.pth", "run.ckpt"):
        opened = open_model(tmp_path / name, "segformer_b0")
        assert not opened.training
        with torch.no_grad():
            assert torch.equal(opened.single_frame(images), expected)
    with pytest.raises(CheckpointError, match="give the model's name"):
        open_model(tmp_path / "released.pth")
    with pytest.raises(CheckpointError, match="is not the model's"):
        open_model(tmp_path / "released.pth", "segformer_b1")
    with pytest.raises(CheckpointError, match="is of SegFormer, not of mrcfa_b0"):
        open_model(tmp_path / "released.pth", "mrcfa_b0")
    run["state_dict"].popitem()
    torch.save(run, tmp_path / "run.ckpt")
    with pytest.raises(CheckpointError, match="does not describe a model"):
        open_model(tmp_path / "run.ckpt")


def test_segment_video_checks_the_classes(tmp_path: Path) -> None:
    source = open_video(make_folder(tmp_path / "street", 2))
    segmenter = StreamingSegmenter(tiny_model())
    with pytest.raises(ValueError, match="classes must name the model's 5 classes, got 4"):
        segment_video(segmenter, source, tmp_path / "out", numbered_classes(4))
    with pytest.raises(ValueError, match="nothing to write"):
        OutputSettings(overlay=False, labels=False)
    assert not (tmp_path / "out").exists()


def test_what_a_model_was_trained_on_is_the_default(tmp_path: Path) -> None:
    """A checkpoint that knows its data gives the files that options by hand give."""
    model = tiny_model(num_references=2)
    source = make_folder(tmp_path / "frames", count=8)
    by_hand = ["--offsets", "-3", "-1", *SIZE]
    options = ["segment", str(source), "--device", "cpu", "--no-overlay"]
    save_model(model, tmp_path / "plain.pt")
    colours = tuple((10 * index, 200, 0) for index in range(5))
    model.trained_on = replace(
        model.trained_on, class_colours=colours, reference_offsets=(-3, -1), frame_scale=(96, 64)
    )
    save_model(model, tmp_path / "knowing.pt")
    for name, more in (("plain", by_hand), ("knowing", [])):
        chosen = ["--checkpoint", str(tmp_path / f"{name}.pt"), "--out", str(tmp_path / name)]
        assert main([*options, *chosen, *more]) == 0
    expected = read_labels(tmp_path / "plain" / "frames")
    labels = read_labels(tmp_path / "knowing" / "frames")
    assert len(labels) == 8
    assert all(np.array_equal(labels[name], expected[name]) for name in expected)
    with Image.open(tmp_path / "knowing" / "frames" / "labels" / "frame_0.png") as picture:
        assert tuple(picture.getpalette()[:15]) == sum(colours, ())
