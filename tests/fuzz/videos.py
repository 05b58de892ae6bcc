"""Malformed videos."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case
from tests.support.video_files import encode, moving_frames
from vss_models.video import open_video

_FORMATS = {
    "a.mp4": "libx264",
    "a.mkv": "mpeg4",
    "b.mkv": "libx264",
    "a.webm": "libvpx-vp9",
    "a.avi": "mpeg4",
    "a.mov": "mpeg4",
    "a.ts": "mpeg2video",
    "a.flv": "flv",
    "a.wmv": "wmv2",
    "a.gif": "gif",
}
_COUNT = 24
_WITHOUT_COUNT = (".flv", ".mkv", ".ts", ".webm", ".wmv")
"""Formats that state no number of frames, and whose reader goes on at the next sound part."""
_OTHER_FILES = (
    "#EXTM3U\n#EXTINF:1,\n{whole}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile {whole}\n",
    '<?xml version="1.0"?><MPD><BaseURL>{whole}</BaseURL></MPD>',
    "[playlist]\nFile1={whole}\nNumberOfEntries=1\n",
    "file:{whole}",
    "not a video",
    "",
)


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard = False

    def emit(self, record: logging.LogRecord) -> None:
        self.heard = True


def videos(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Videos of many formats, damaged, oddly named, or no videos at all."""
    frames = moving_frames(_COUNT, 48, 64)
    whole = {name: encode(folder / name, frames, codec) for name, codec in _FORMATS.items()}
    names = list(whole)
    while True:
        source = whole[names[int(rng.integers(len(names)))]]
        kind, content = "whole", source.read_bytes()
        choice = rng.random()
        if choice < 0.85:
            kind, content = damaged(content, rng)
        elif choice < 0.92:
            text = _OTHER_FILES[int(rng.integers(len(_OTHER_FILES)))]
            kind, content = "text", text.format(whole=source).encode()
        odd = ("", "12:30 ", "http:", "-", "%d", "a\n", "…")[int(rng.integers(7))]
        path = folder / f"{odd}{rng.integers(1 << 60):x}{source.suffix}"
        if rng.random() < 0.02:
            os.mkfifo(path)
            kind = "a pipe"
        else:
            path.write_bytes(content)
        yield Case(
            f"{source.name}, {kind}",
            lambda path=path, kind=kind: _check_video(path, kind),
            (str(path),),
        )


def _check_video(path: Path, kind: str) -> None:
    listener = _Listener()
    logger = logging.getLogger("vss_models.video")
    logger.addHandler(listener)
    try:
        video = open_video(path)
        count = 0
        for frame in video:
            assert frame.dtype == np.uint8
            assert frame.shape == (*video.size, 3)
            count += 1
    finally:
        logger.removeHandler(listener)
    assert kind != "text", "a text file was played"
    # Formats without checksums cannot tell a changed pixel, but most a frame that is not there.
    if path.suffix in _WITHOUT_COUNT and kind != "cut":
        return
    if path.suffix == ".gif" and kind == "remove":
        return  # Without a whole block a GIF is still one.
    assert count >= _COUNT or listener.heard, f"{count} of {_COUNT} frames, and not a word"
