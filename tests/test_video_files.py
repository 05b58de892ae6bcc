"""Video files that are damaged, cut off, oddly named, or no videos but ask for other files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.video_files import encode, moving_frames
from vss_models.video import VideoError, open_video
from vss_models.video.cut_off import cut_off_reason
from vss_models.video.reader import missing_frames

FORMATS = {
    "a.mkv": "libx264",
    "a.webm": "libvpx-vp9",
    "a.ts": "libx264",
    "b.ts": "mpeg2video",
    "a.m2ts": "libx264",
    "a.gif": "gif",
    "a.wmv": "wmv2",
    "a.flv": "flv",
    "a.avi": "mpeg4",
    "a.mov": "mpeg4",
    "a.mp4": "libx264",
}


def encode_as(folder: Path, name: str, count: int = 40, times: list[int] | None = None) -> Path:
    options = {"movflags": "faststart"} if name.endswith(("mp4", "mov")) else {}
    return encode(folder / name, moving_frames(count, 96, 128), FORMATS[name], times, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_of_every_format_are_read(tmp_path: Path, name: str) -> None:
    path = encode_as(tmp_path, name)
    assert len(list(open_video(path))) == 40
    assert cut_off_reason(path) is None


# The 81 bytes keep transport streams from ending between two of their packets, where nothing tells.
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0.6, 0.7])
def test_a_file_that_ends_early_is_an_error(tmp_path: Path, name: str, part: float) -> None:
    path = encode_as(tmp_path, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part) // 188 * 188 + 81])
    with pytest.raises(VideoError, match=r"(damaged or|is) cut off") as caught:
        list(open_video(path))
    assert 0 < caught.value.num_decoded < 40


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.gif", "a.wmv", "a.mp4"])
def test_the_last_bytes_are_missed(tmp_path: Path, name: str) -> None:
    path = encode_as(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-3])
    assert cut_off_reason(path) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3\x81\x00\x18\x53\x80\x67",
        b"\x1a\x45\xdf\xa3\x00\x00\x00",
        bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + b"\xff" * 14,
        b"\0\0\0\x08ftyp\0\0\0\0",
        b"GIF89a",
    ],
)
def test_headers_without_sense_do_not_confuse_the_check(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.video"
    path.write_bytes(content)
    assert cut_off_reason(path) in (None, "the mark that ends a GIF is missing")


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_matroska_that_starts_late_is_whole(tmp_path: Path, name: str) -> None:
    path = encode_as(tmp_path, name, times=[25 + number for number in range(40)])
    assert len(list(open_video(path))) == 40


def test_joined_transport_streams_are_read_to_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = encode_as(tmp_path, "a.ts")
    two = tmp_path / "two.ts"
    two.write_bytes(one.read_bytes() * 2)
    with caplog.at_level(logging.WARNING):
        assert len(list(open_video(two))) == 80
    assert "marked as damaged or after a gap" in caplog.text


def test_missing_frames_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = [number for number in range(60) if number not in (20, 21, 40)]
    path = encode_as(tmp_path, "a.mkv", count=57, times=times)
    with caplog.at_level(logging.WARNING):
        assert len(list(open_video(path))) == 57
    assert f"{path}: about 3 frames are missing" in caplog.text


@pytest.mark.parametrize(
    ("times", "missing"),
    [
        (range(30), 0),
        ([*range(15), *range(17, 40)], 2),
        ([33, 67, 100, 133, 167, 200, 233, 267, 300, 333, 367, 400, 433], 0),  # milliseconds
        ([number**2 for number in range(40)], 0),  # a rate that varies
        ([0, 1, 2], 0),
        ([5] * 40, 0),
    ],
)
def test_frames_are_missed_only_at_a_constant_rate(times: list[int], missing: int) -> None:
    assert missing_frames(list(times)) == missing


@pytest.mark.parametrize("name", ["12:30.mp4", "http:x.mp4", "-v.mp4", "a\nb.mp4", "%03d.mp4"])
def test_any_name_is_only_a_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(encode_as(tmp_path, "a.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(list(open_video(name))) == 40


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.4,\nSECRET\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile SECRET\n",
        "ffconcat version 1.0\nfile a.ts\n",
    ],
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, playlist: str) -> None:
    secret = encode_as(tmp_path, "a.ts")
    path = tmp_path / "list.mp4"
    path.write_text(playlist.replace("SECRET", str(secret)))
    with pytest.raises(VideoError, match="not a video that FFmpeg reads"):
        open_video(path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="is a pipe or a device, not a file"):
        open_video(tmp_path / "a.mp4")


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    path = encode_as(tmp_path, "a.mp4")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert np.stack(list(open_video(path))).shape == (40, 96, 128, 3)
    assert len(os.listdir("/proc/self/fd")) == before
