"""What ``vss segment`` leaves behind: after success, after faults, on signals and on full disks."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.video_files import encode, moving_frames
from vss_models import VideoSegmentor, create_model
from vss_models.checkpoints import save_model
from vss_models.cli import main
from vss_models.data import EvaluationTransform, numbered_classes
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.inference.video_to_files import OutputSettings, segment_video
from vss_models.video import VideoError, open_video

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}


def small_model(num_classes: int = 5) -> VideoSegmentor:
    torch.manual_seed(3)
    return create_model("segformer_b0", num_classes, **SMALL).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(small_model(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def make_video(path: Path, count: int = 8) -> Path:
    return encode(path, moving_frames(count, 46, 62), "libx264", movflags="faststart")


def options(source: Path, checkpoint: Path, out: Path, *more: str) -> list[str]:
    paths = [str(source), "--checkpoint", str(checkpoint), "--out", str(out)]
    return ["segment", *paths, "--size", "96", "64", "--device", "cpu", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cut_off(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    return path


def test_earlier_results_are_replaced_when_the_new_ones_are_complete(
    tmp_path: Path, checkpoint: Path
) -> None:
    out = tmp_path / "out"
    assert main(options(make_video(tmp_path / "a.mp4", 8), checkpoint, out)) == 0
    (out / "a" / "notes.txt").write_text("mine")
    assert main(options(make_video(tmp_path / "a.mp4", 3), checkpoint, out, "--overwrite")) == 0
    assert sorted(contents(out)) == [
        "a/labels/000000.png",
        "a/labels/000001.png",
        "a/labels/000002.png",
        "a/notes.txt",
        "a/overlay.mp4",
    ]
    assert open_video(out / "a" / "overlay.mp4").num_frames == 3


def test_a_damaged_video_leaves_earlier_results_alone(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source = make_video(tmp_path / "a.mp4", 40)
    assert main(options(source, checkpoint, out)) == 0
    before = contents(out / "a")
    assert main(options(cut_off(source), checkpoint, out, "--overwrite")) == 1
    assert contents(out / "a") == before
    assert f"{out / 'a.incomplete'} holds the frames so far" in capsys.readouterr().err
    assert 0 < len(list((out / "a.incomplete" / "labels").iterdir())) < 40
    # The next run starts over and leaves nothing of it.
    assert main(options(make_video(source, 2), checkpoint, out, "--overwrite")) == 0
    assert [path.name for path in out.iterdir()] == ["a"]
    assert len(list((out / "a" / "labels").iterdir())) == 2


def test_labels_in_the_numbering_of_masks(tmp_path: Path, checkpoint: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 2)
    assert main(options(source, checkpoint, tmp_path / "classes")) == 0
    mapping = ["--label-mapping", "vspw", "--no-overlay"]
    assert main(options(source, checkpoint, tmp_path / "masks", *mapping)) == 0
    plain = Image.open(tmp_path / "classes" / "a" / "labels" / "000001.png")
    shifted = Image.open(tmp_path / "masks" / "a" / "labels" / "000001.png")
    assert np.array_equal(np.asarray(shifted), np.asarray(plain) + 1)
    assert np.array_equal(np.asarray(shifted.convert("RGB")), np.asarray(plain.convert("RGB")))


def test_masks_have_room_for_254_classes(tmp_path: Path) -> None:
    stream = StreamingSegmenter(small_model(255), transform=EvaluationTransform((96, 64)))
    source = open_video(make_video(tmp_path / "a.mp4", 2))
    settings = OutputSettings(overlay=False, label_mapping="vspw")
    with pytest.raises(ValueError, match="at most 254 classes, the model has 255"):
        segment_video(stream, source, tmp_path / "out", numbered_classes(255), settings)
    with pytest.raises(ValueError, match="label_mapping must be identity or vspw, got 'coco'"):
        OutputSettings(label_mapping="coco")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("meta", "--device meta cannot be used here"),
        ("xla", "--device xla cannot be used here"),
        ("vulkan", "--device vulkan cannot be used here"),
        ("mps", "--device mps cannot be used here"),
        ("toaster", "--device must be a device such as cpu or cuda:0, got 'toaster'"),
    ],
)
def test_devices_that_cannot_run_are_refused(
    tmp_path: Path,
    checkpoint: Path,
    device: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = options(make_video(tmp_path / "a.mp4"), checkpoint, tmp_path / "out")
    arguments[arguments.index("--device") + 1] = device
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_allocation_that_cannot_succeed_is_one_line(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(make_video(tmp_path / "a.mp4"), checkpoint, tmp_path / "out")
    place = arguments.index("--size")
    arguments[place + 1 : place + 3] = ["10000000", "10000000"]
    assert main(arguments) == 1
    assert "vss segment: not enough memory" in capsys.readouterr().err


def test_an_overlay_wider_than_h264_allows_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    Image.new("RGB", (16_500, 2)).save(folder / "0.png")
    assert main(options(folder, checkpoint, tmp_path / "out")) == 1
    assert "16384" in capsys.readouterr().err
    assert main(options(folder, checkpoint, tmp_path / "out", "--no-overlay")) == 0


def test_a_full_disk_is_named_and_leaves_what_there_was_room_for(
    tmp_path: Path, checkpoint: Path
) -> None:
    source = make_video(tmp_path / "a.mp4", 400)
    arguments = options(source, checkpoint, tmp_path / "out", "--no-labels")
    # A limit on the size of files looks to a program like a full disk.
    result = subprocess.run(
        [sys.executable, "-m", "vss_models.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    overlay = tmp_path / "out" / "a" / "overlay.mp4"
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"{overlay}: File too large" in result.stderr
    assert [path.name for path in overlay.parent.iterdir()] == ["overlay.mp4"]
    frames = []
    with pytest.raises(VideoError, match="cut off"):
        frames.extend(open_video(overlay))
    assert len(frames) > 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_what_was_done(
    tmp_path: Path, checkpoint: Path, number: signal.Signals
) -> None:
    source = make_video(tmp_path / "a.mp4", 2000)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "vss_models.cli", *options(source, checkpoint, out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "a" / "labels" / "000020.png").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert f"{out / 'a'} holds the frames so far" in errors
    num_labels = len(list((out / "a" / "labels").iterdir()))
    assert 20 < num_labels < 2000
    assert open_video(out / "a" / "overlay.mp4").num_frames == num_labels
    assert sorted(path.name for path in (out / "a").iterdir()) == ["labels", "overlay.mp4"]
