"""Reading and writing videos, whole and damaged ones."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.video_files import encode, moving_frames
from vss_models.video import VideoError, VideoWriter, exact_rate, open_video


def read_until_error(path: Path) -> tuple[list[np.ndarray], VideoError]:
    frames: list[np.ndarray] = []
    with pytest.raises(VideoError) as caught:
        frames.extend(open_video(path))  # extend keeps what came before the error
    return frames, caught.value


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (1, 1)])
@pytest.mark.parametrize("rate", [25, 29.97, Fraction(24000, 1001), 7.5, 0.5])
def test_round_trip(tmp_path: Path, size: tuple[int, int], rate: float | Fraction) -> None:
    frames = moving_frames(6, *size)
    with VideoWriter(tmp_path / "out.mp4", rate, size) as writer:
        for frame in frames:
            writer.write(frame)
        assert not (tmp_path / "out.mp4").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]

    video = open_video(tmp_path / "out.mp4")
    height, width = size
    assert video.size == (height + height % 2, width + width % 2)
    assert video.num_frames == 6
    assert video.rate == exact_rate(rate)
    for _ in range(2):
        read = list(video)
        assert len(read) == 6
        for got, wrote in zip(read, frames, strict=True):
            assert got.dtype == np.uint8
            assert np.abs(got[:height, :width].astype(int) - wrote).mean() < 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_rates_are_exact() -> None:
    assert exact_rate(29.97) == Fraction(30000, 1001)
    assert exact_rate(23.976) == Fraction(24000, 1001)
    assert exact_rate(59.94) == Fraction(60000, 1001)
    assert exact_rate(12.5) == Fraction(25, 2)
    assert exact_rate(15) == 15
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate must be"):
            exact_rate(wrong)


@pytest.mark.parametrize("keep", [False, True])
def test_an_exception_keeps_the_file_only_if_asked(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"from an earlier run")

    def write_three() -> None:
        with VideoWriter(path, 10, (32, 48), keep_partial=keep) as writer:
            for frame in moving_frames(3, 32, 48):
                writer.write(frame)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_three()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
    if keep:
        assert len(list(open_video(path))) == 3
    else:
        assert path.read_bytes() == b"from an earlier run"


def test_the_writer_names_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be"):
        VideoWriter(tmp_path / "a.mp4", 10, (0, 4))
    with pytest.raises(ValueError, match="quality must be"):
        VideoWriter(tmp_path / "a.mp4", 10, (4, 4), quality=60)
    writer = VideoWriter(tmp_path / "a.mp4", 10, (4, 6))
    with pytest.raises(ValueError, match=r"shape \(4, 6, 3\), got \(6, 4, 3\)"):
        writer.write(np.zeros((6, 4, 3), np.uint8))
    with pytest.raises(TypeError, match="uint8 array, got float64"):
        writer.write(np.zeros((4, 6, 3)))
    with pytest.raises(ValueError, match="no frame was written"):
        writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.write(np.zeros((4, 6, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


# The header at the front lets a cut-off MP4 be opened at all.
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mov", "mpeg4", {"movflags": "faststart"}),
        ("a.mkv", "libx264", {}),
        ("a.avi", "mpeg4", {}),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_a_cut_off_file_yields_its_frames_and_an_error(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = encode(tmp_path / name, moving_frames(60, 96, 128), codec, **options)
    whole = list(open_video(path))
    assert len(whole) == 60
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    frames, error = read_until_error(path)
    assert 0 < len(frames) < 60
    assert error.num_decoded == len(frames)
    assert str(path) in str(error)
    assert f"{len(frames)} frames were decoded" in str(error)
    # The last frame may be half there; those before it are whole.
    for got, complete in zip(frames[:-1], whole, strict=False):
        assert np.array_equal(got, complete)


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_frames(60, 96, 128), "libx264", movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    frames, error = read_until_error(path)
    assert error.num_decoded == len(frames) < 60


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    path = encode(tmp_path / "no_index.mp4", moving_frames(20, 32, 32), "libx264")
    path.write_bytes(path.read_bytes()[:-200])
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    for broken in (path, text, empty, sound):
        with pytest.raises(VideoError, match=broken.name) as caught:
            open_video(broken)
        assert caught.value.num_decoded == 0
    with pytest.raises(FileNotFoundError, match="missing"):
        open_video(tmp_path / "missing.mp4")


def test_rotation_in_the_metadata_is_carried_out(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_frames(3, 48, 96), "libx264")
    stored = list(open_video(path))
    # The display matrix of the track header, (x, y) -> (-y, x): a quarter turn clockwise.
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, matrix, 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    video = open_video(path)
    assert video.size == (96, 48)
    for turned, frame in zip(video, stored, strict=True):
        assert np.array_equal(turned, frame.transpose(1, 0, 2)[:, ::-1])


def test_a_folder_of_frames(tmp_path: Path) -> None:
    frames = moving_frames(11, 20, 30)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    video = open_video(tmp_path)
    assert (video.rate, video.size, video.num_frames) == (15, (20, 30), 11)
    assert video.frame_names == tuple(f"frame{number}" for number in range(11))
    assert np.array_equal(np.stack(list(video)), np.stack(frames))
    assert open_video(tmp_path, rate=29.97).rate == Fraction(30000, 1001)

    broken = tmp_path / "frame4.png"
    broken.write_bytes(broken.read_bytes()[:100])
    read, error = read_until_error(tmp_path)
    assert (len(read), error.num_decoded, error.path) == (4, 4, broken)
    Image.fromarray(frames[4][:10]).save(broken)
    read, error = read_until_error(tmp_path)
    assert len(read) == 4
    assert "from 30x20 to 30x10" in str(error)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        open_video(tmp_path)
