"""Live sources, as FFmpeg's test pattern plays them, and ``vss segment --camera``."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_video import SIZE, make_frames, make_video, read_labels, segment, tiny_model
from tests.support.video_files import encode, moving_frames
from vss_models.checkpoints import save_model
from vss_models.cli import main
from vss_models.data import EvaluationTransform, numbered_classes
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.inference.video_to_files import segment_video
from vss_models.video import FrameSource, LiveSource, VideoError, live, open_video

PATTERN = "testsrc=size=62x46:rate=25:duration=1"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_source_tells_what_it_sends() -> None:
    source = LiveSource(PATTERN, "lavfi")
    assert source.is_live
    assert source.size == (46, 62)
    assert source.rate == 25
    frames = list(source)
    assert len(frames) == 25
    assert all(frame.shape == (46, 62, 3) and frame.dtype == np.uint8 for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])
    assert LiveSource(PATTERN, "lavfi", rate=29.97).rate == Fraction(30000, 1001)


def test_sources_that_do_not_open(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="/dev/none: the source does not open"):
        LiveSource("/dev/none", "v4l2")
    with pytest.raises(ValueError, match="nonsense"):
        LiveSource("/dev/none", "nonsense")
    with pytest.raises(VideoError, match="has no video in it"):
        LiveSource("sine=duration=1", "lavfi")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="does not open"):
        LiveSource(str(tmp_path / "empty.mp4"))


def test_a_pipe_that_nobody_writes_to_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "camera")
    monkeypatch.setattr(live, "OPEN_SECONDS", 0.2)
    with pytest.raises(VideoError, match=r"camera: the source does not open .nothing came for 0.2"):
        LiveSource(str(tmp_path / "camera"))


@pytest.mark.parametrize("count", [5, 200])
def test_a_pipe_is_read_as_it_is_written(tmp_path: Path, count: int) -> None:
    """Few frames fit into the pipe, whose writer has left before they are read."""
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    stream = encode(tmp_path / "a.ts", moving_frames(count, 46, 62), "mpeg2video").read_bytes()
    assert (len(stream) < 65536) == (count == 5)
    writer = threading.Thread(target=pipe.write_bytes, args=(stream,))
    writer.start()
    source = LiveSource(str(pipe))
    assert len(list(source)) == count
    writer.join()


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(live, "READ_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(VideoError, match=r"nothing came for 0.5 seconds"):
            LiveSource(address)


def test_camera_command(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pattern plays as fast as it can, so most of it is dropped; nothing goes uncounted."""
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), *SIZE]
    options += ["--device", "cpu", "--camera", PATTERN, "--camera-format", "lavfi"]
    assert main(["segment", *options]) == 0
    printed = re.search(r"camera: (\d+) frames in .*, (\d+) dropped", capsys.readouterr().out)
    assert printed is not None
    labelled, dropped = map(int, printed.groups())
    assert labelled + dropped == 25
    labels = read_labels(tmp_path / "out" / "camera")
    assert len(labels) == labelled
    assert "000024" in labels
    # Shown in place of the dropped ones, so that the overlay lasts as long as the source.
    assert open_video(tmp_path / "out" / "camera" / "overlay.mp4").num_frames == 25


class Camera(FrameSource):
    """A camera that sends a frame for each permit, then is stopped by Ctrl-C."""

    rate = Fraction(10)
    size = (46, 62)
    is_live = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labelled = threading.Semaphore(1)

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in make_frames(5, 46, 62):
            assert self.labelled.acquire(timeout=20)
            yield frame
        assert self.labelled.acquire(timeout=20)
        raise KeyboardInterrupt


def test_interrupt_ends_a_camera_and_finishes_its_files(tmp_path: Path) -> None:
    camera = Camera(tmp_path)
    model = tiny_model()
    transform = EvaluationTransform((96, 64))
    shown = []

    def on_frame(frame: np.ndarray, labels: np.ndarray) -> None:
        shown.append(labels)
        camera.labelled.release()

    result = segment_video(
        StreamingSegmenter(model, transform=transform),
        camera,
        tmp_path / "out",
        numbered_classes(5),
        on_frame=on_frame,
    )
    assert result == (5, 0)
    stream = StreamingSegmenter(model, transform=transform)
    expected = [stream.step(frame).numpy() for frame in make_frames(5, 46, 62)]
    assert all(np.array_equal(*pair) for pair in zip(shown, expected, strict=True))
    assert len(read_labels(tmp_path / "out")) == 5
    assert open_video(tmp_path / "out" / "overlay.mp4").num_frames == 5


def test_interrupt_of_a_file_is_passed_on(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video(tmp_path / "clip.mp4", 6)
    step = StreamingSegmenter.step

    def interrupted(self: StreamingSegmenter, frame: np.ndarray) -> object:
        if self.num_frames == 3:
            raise KeyboardInterrupt
        return step(self, frame)

    monkeypatch.setattr(StreamingSegmenter, "step", interrupted)
    assert segment(source, tmp_path / "out", checkpoint) == 130
    assert len(read_labels(tmp_path / "out" / "clip")) == 3
    assert open_video(tmp_path / "out" / "clip" / "overlay.mp4").num_frames == 3


def test_bad_combinations(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--device", "cpu"]
    for options, message in (
        ([], "give either INPUT or --camera"),
        (["clip.mp4", "--camera", "0"], "give either INPUT or --camera"),
        (["clip.mp4", "--camera-format", "v4l2"], "--camera-format is for --camera"),
        (["--camera", "0", "--compile", "cuda-graph"], "needs the model on a CUDA device"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["segment", *options, *out])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert main(["segment", "--camera", "/dev/none", *out]) == 1
    assert "/dev/none: the source does not open" in capsys.readouterr().err
