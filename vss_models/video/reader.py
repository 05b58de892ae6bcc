"""Reading video files and folders of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vss_models.data.vspw import list_frames, read_image
from vss_models.video.rate import exact_rate

FOLDER_RATE = Fraction(15)
"""Frames per second of a folder of frames, unless told otherwise: the rate of VSPW."""


class VideoError(Exception):
    """A video that cannot be read to its end.

    Attributes:
        path: The file, or the address of a live source.
        num_decoded: Frames that were read before the fault.
    """

    def __init__(self, path: Path | str, num_decoded: int, reason: str) -> None:
        super().__init__(f"{path}: {reason}; {num_decoded} frames were decoded")
        self.path = path
        self.num_decoded = num_decoded


class FrameSource:
    """The frames of one video, from first to last; made by :func:`open_video`.

    Attributes:
        path: The file or folder.
        rate: Frames per second; of a video with a variable rate, its mean.
        size: (height, width) of the frames, upright.
        num_frames: Number of frames, or None where the file doesn't say.
        frame_names: Names of the frames of a folder, or None for a file.
        is_live: Whether frames come at their own pace and are lost if they are not read in time.
    """

    path: Path
    rate: Fraction
    size: tuple[int, int]
    num_frames: int | None = None
    frame_names: tuple[str, ...] | None = None
    is_live: bool = False

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields each frame as uint8 RGB (H, W, 3).

        Raises:
            VideoError: After the last good frame, if the video is damaged or cut off.
        """
        raise NotImplementedError


def open_video(source: str | os.PathLike[str], rate: Fraction | float | None = None) -> FrameSource:
    """Opens a video file or a folder of frames.

    A rotation in the file's metadata (phones, cameras) is carried out. Pixels that are not square
    stay as they are stored.

    Args:
        source: A file in any format FFmpeg reads, or a folder of images, which are played in the
            order of their names, numbers in names counting as numbers.
        rate: Frames per second, instead of the file's own or the 15 of a folder.

    Returns:
        The frames; iterating again starts again.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The folder holds no images, or `rate` is not positive.
        VideoError: The file is no video or its header is damaged.
    """
    path = Path(source)
    chosen_rate = None if rate is None else exact_rate(rate)
    if path.is_dir():
        return _FrameFolder(path, chosen_rate)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such video file or folder of frames")
    return _VideoFile(path, chosen_rate)


class _FrameFolder(FrameSource):
    """A folder of images."""

    def __init__(self, path: Path, rate: Fraction | None) -> None:
        self.path = path
        self.rate = rate or FOLDER_RATE
        self._frames = list_frames(path)
        self.num_frames = len(self._frames)
        self.frame_names = tuple(frame.stem for frame in self._frames)
        self.size = self._read(0).shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, file in enumerate(self._frames):
            image = self._read(number)
            if image.shape[:2] != self.size:
                raise VideoError(file, number, _changed_size(image.shape[:2], self.size))
            yield image

    def _read(self, number: int) -> np.ndarray:
        file = self._frames[number]
        try:
            return read_image(file).permute(1, 2, 0).contiguous().numpy()
        except (ValueError, FileNotFoundError) as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise VideoError(file, number, reason) from error


class _VideoFile(FrameSource):
    """A file that FFmpeg reads."""

    def __init__(self, path: Path, rate: Fraction | None) -> None:
        self.path = path
        with self._open() as container:
            stream = self._stream(container)
            self.rate = rate or stream.average_rate or stream.guessed_rate or FOLDER_RATE
            self.num_frames = stream.frames or None
        # Only a decoded frame tells whether the video is to be turned.
        for frame in self._decode(check_end=False):
            self.size = frame.shape[:2]
            return
        raise VideoError(path, 0, "the video is empty or its first frame cannot be decoded")

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._decode(check_end=True)

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(os.fspath(self.path))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                self.path, 0, f"not a video, or its header is damaged or cut off ({error.strerror})"
            ) from error

    def _stream(self, container: av.container.InputContainer) -> VideoStream:
        if not container.streams.video:
            raise VideoError(self.path, 0, "the file has no video in it, only other streams")
        return container.streams.video[0]

    def _decode(self, check_end: bool) -> Iterator[np.ndarray]:
        decoded = packets = 0
        size = None
        try:
            with self._open() as container:
                stream = self._stream(container)
                end = Fraction(0)
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    if packet.is_corrupt:
                        raise VideoError(self.path, decoded, "the file is damaged or cut off")
                    for frame in packet.decode():
                        if frame.is_corrupt:
                            raise VideoError(self.path, decoded, "a frame is damaged or cut off")
                        image = upright(frame)
                        size = size or image.shape[:2]
                        if image.shape[:2] != size:
                            raise VideoError(
                                self.path, decoded, _changed_size(image.shape[:2], size)
                            )
                        end = _end_time(frame, stream, end)
                        decoded += 1
                        yield image
                if check_end:
                    self._check_end(stream, packets, decoded, end)
        except av.FFmpegError as error:
            raise VideoError(
                self.path, decoded, f"the video is damaged or cut off ({error.strerror})"
            ) from error

    def _check_end(self, stream: VideoStream, packets: int, decoded: int, end: Fraction) -> None:
        """Raises if the header promises more than there was: some formats just end when cut off."""
        if packets < stream.frames:
            raise VideoError(
                self.path, decoded, f"the video is cut off, its header says {stream.frames} frames"
            )
        tagged = _tagged_duration(stream)
        # Half a second covers a last frame that is shown longer than the others.
        if tagged is not None and end < tagged - Fraction(1, 2) - 2 / self.rate:
            raise VideoError(
                self.path,
                decoded,
                f"the video is cut off at {float(end):.2f} of {float(tagged):.2f} seconds",
            )


def upright(frame: VideoFrame) -> np.ndarray:
    """Returns a decoded frame as uint8 RGB (H, W, 3), turned as its metadata says."""
    # The metadata gives counterclockwise degrees by which the picture is to be turned.
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _end_time(frame: VideoFrame, stream: VideoStream, previous: Fraction) -> Fraction:
    if frame.pts is None or frame.time_base is None:
        return previous
    start = (stream.start_time or 0) * (stream.time_base or Fraction(0))
    return max(previous, frame.pts * frame.time_base - start)


def _tagged_duration(stream: VideoStream) -> Fraction | None:
    """Duration that Matroska and WebM files note for the stream as HH:MM:SS.fraction."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (Fraction(part) for part in parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _changed_size(new: tuple[int, ...], first: tuple[int, ...]) -> str:
    return (
        f"the frame size changes from {first[1]}x{first[0]} to {new[1]}x{new[0]}; "
        "all frames of a video must have one size"
    )


__all__ = ["FOLDER_RATE", "FrameSource", "VideoError", "open_video", "upright"]
