"""Cameras and network streams, as PyAV opens them."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vss_models.video.rate import exact_rate
from vss_models.video.reader import FrameSource, VideoError, upright

LIVE_RATE = Fraction(30)
"""Frames per second of a live source that does not tell its own."""

OPEN_SECONDS, READ_SECONDS = 20.0, 10.0

_NO_ANSWER = "nothing came for {:g} seconds"


class LiveSource(FrameSource):
    """The frames of a camera or a network stream, from now on; they can be iterated over once.

    Args:
        address: A device such as /dev/video0, a URL such as rtsp://camera/stream, or what else
            FFmpeg takes as input.
        container_format: FFmpeg's name of the input format where the address does not tell it:
            v4l2 (Linux), avfoundation (macOS), dshow (Windows).
        rate: Frames per second, instead of the source's own.

    Raises:
        ValueError: If FFmpeg does not know the format, or `rate` is not positive.
        VideoError: If the source does not open, or sends no frame.
    """

    is_live = True

    def __init__(
        self,
        address: str,
        container_format: str | None = None,
        rate: Fraction | float | None = None,
    ) -> None:
        self.path = Path(address)
        self._address = address
        self._num_decoded = 0
        chosen = None if rate is None else exact_rate(rate)
        try:
            with _input(address) as (name, options):
                self._container = av.open(
                    name,
                    format=container_format,
                    container_options=options,
                    timeout=(OPEN_SECONDS, READ_SECONDS),
                )
        except (av.FFmpegError, OSError) as error:
            raise VideoError(address, 0, f"the source does not open ({_reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(address, 0, "the source has no video in it")
        stream = self._container.streams.video[0]
        self.rate = chosen or stream.average_rate or stream.guessed_rate or LIVE_RATE
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise VideoError(address, 0, "the source sends no frame")
        self.size = first.shape[:2]
        self._first: np.ndarray | None = first

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields each frame as uint8 RGB (H, W, 3) as long as the source sends some.

        Raises:
            VideoError: If the source breaks off, or changes the size of its frames.
        """
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        for frame in self._frames:
            if frame.shape[:2] != self.size:
                raise VideoError(self._address, self._num_decoded, "the frame size changes")
            yield frame

    def _decode(self) -> Iterator[np.ndarray]:
        try:
            with self._container as container:
                for frame in container.decode(video=0):
                    self._num_decoded += 1
                    yield upright(frame)
        except av.FFmpegError as error:
            raise VideoError(
                self._address, self._num_decoded, f"the source broke off ({_reason(error)})"
            ) from error


@contextmanager
def _input(address: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields what FFmpeg is to open, and its options.

    A named pipe is opened here and handed over open: opening it again would wait for ever where
    its writer has written everything and left.

    Raises:
        TimeoutError: If nobody writes to a named pipe in time.
    """
    if not Path(address).is_fifo():
        yield address, {}
        return
    pipe = os.open(address, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not select.select([pipe], [], [], OPEN_SECONDS)[0]:
            raise TimeoutError(errno.ETIMEDOUT, _NO_ANSWER.format(OPEN_SECONDS))
        os.set_blocking(pipe, True)
        yield "fd:", {"fd": str(pipe)}
    finally:
        os.close(pipe)


def _reason(error: OSError | av.FFmpegError) -> str:
    if isinstance(error, av.error.ExitError):
        # FFmpeg was interrupted, by the timeout that it was given.
        return _NO_ANSWER.format(READ_SECONDS)
    return str(error.strerror)


__all__ = ["LIVE_RATE", "LiveSource"]
