"""Writing H.264 files."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from vss_models.atomic import AtomicFile
from vss_models.video.rate import exact_rate

LARGEST_SIDE = 16384
"""Pixels that x264 encodes in a row or column."""

_FRAGMENTED = {"movflags": "hybrid_fragmented", "frag_duration": "1000000"}  # microseconds


class VideoWriter:
    """Writes an H.264 MP4 file; it appears under its name only once it is complete.

    H.264 with 4:2:0 colours has even sides: an odd side gets its last row or column twice. Used as
    a context manager, an exception inside removes what was written, unless `keep_partial` is set.

    While it is written the file is fragmented, that is playable up to a second ago whatever
    happens; so `keep_partial` also keeps what a full disk has room for.

    Args:
        path: File to write; an existing one is replaced at the end.
        rate: Frames per second, whole or not.
        size: (height, width) of the frames.
        quality: Constant rate factor of x264: 0 is lossless, 51 the worst.
        keep_partial: Whether, after an exception inside the context, the frames so far make the
            file.

    Attributes:
        num_frames: Frames written so far.

    Raises:
        ValueError: If rate, size or quality is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rate: Fraction | float,
        size: tuple[int, int],
        quality: int = 20,
        keep_partial: bool = False,
    ) -> None:
        height, width = size
        if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
            raise ValueError(
                f"size must be (height, width) of 1 to {LARGEST_SIDE} pixels, the most of H.264, "
                f"got {size}"
            )
        if not 0 <= quality <= 51:
            raise ValueError(f"quality must be a constant rate factor 0..51, got {quality}")
        self.path = Path(path)
        self.size = (height, width)
        self.rate = exact_rate(rate)
        self.keep_partial = keep_partial
        self.num_frames = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = AtomicFile(self.path)
        # Told to be a file, a name like `run:1` is not taken for an address.
        self._container = av.open(
            f"file:{self._file.temporary}", "w", format="mp4", container_options=_FRAGMENTED
        )
        self._stream = self._container.add_stream(
            "libx264", rate=self.rate, options={"crf": str(quality)}
        )
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        # Players guess the conversion to RGB of a file that doesn't name it.
        self._stream.codec_context.colorspace = Colorspace.ITU709
        self._stream.codec_context.color_range = ColorRange.MPEG
        self._open = True

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame.

        Args:
            frame: uint8 RGB (H, W, 3).

        Raises:
            TypeError: If it is no uint8 array.
            ValueError: If its shape is another, or the file is closed.
            OSError: If the disk is full.
        """
        if not self._open:
            raise ValueError(f"{self.path} is closed")
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
            raise TypeError(f"frame must be a uint8 array, got {kind}")
        if frame.shape != (*self.size, 3):
            raise ValueError(f"frame must have the shape {(*self.size, 3)}, got {frame.shape}")
        height, width = self.size
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        try:
            self._container.mux(self._stream.encode(picture))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.num_frames += 1

    def close(self) -> None:
        """Completes the file and gives it its name.

        Raises:
            ValueError: If no frame was written; there is no file then.
            OSError: If the disk is full. With `keep_partial` the file holds what there is room for.
        """
        if not self._open:
            return
        if self.num_frames == 0:
            self.discard()
            raise ValueError(f"{self.path}: no frame was written, a video needs at least one")
        self._open = False
        try:
            self._finish()
            self._file.commit()
        except OSError as error:
            if self.keep_partial and self._file.temporary.exists():
                self._file.commit()
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            self._file.discard()

    def _finish(self) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def discard(self) -> None:
        """Removes what was written."""
        if not self._open:
            return
        self._open = False
        try:
            # On a full disk the file cannot be completed; it is not wanted either.
            with contextlib.suppress(OSError):
                self._container.close()
        finally:
            self._file.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or (self.keep_partial and self.num_frames > 0):
            self.close()
        else:
            self.discard()


__all__ = ["VideoWriter"]
