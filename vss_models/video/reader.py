"""Reading video files and folders of frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vss_models.data.images import read_image
from vss_models.data.vspw import list_frames
from vss_models.video.cut_off import cut_off_reason
from vss_models.video.rate import exact_rate

_logger = logging.getLogger(__name__)

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
        ValueError: The folder holds no images, the source is a pipe or a device, or `rate` is not
            positive.
        VideoError: The file is no video or its header is damaged.
    """
    path = Path(source)
    chosen_rate = None if rate is None else exact_rate(rate)
    if path.is_dir():
        return _FrameFolder(path, chosen_rate)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such video file or folder of frames")
    if not path.is_file():
        raise ValueError(
            f"{path} is a pipe or a device, not a file; a camera is opened as a live source"
        )
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
        # Only a decoded frame tells whether the video is to be rotated.
        for frame in self._decode(check_end=False):
            self.size = frame.shape[:2]
            return
        raise VideoError(path, 0, "the video is empty or its first frame cannot be decoded")

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._decode(check_end=True)

    def _open(self) -> av.container.InputContainer:
        """Opens the container.

        FFmpeg gets the open file, not its name, and no protocol to open another: a name may look
        like an address (`12:30.mp4`), and a playlist would have it read any file of the machine.
        """
        try:
            with self.path.open("rb") as file:
                return av.open(
                    "fd:", container_options={"fd": str(file.fileno()), "protocol_whitelist": "fd"}
                )
        except av.FFmpegError as error:
            raise VideoError(
                self.path,
                0,
                "not a video that FFmpeg reads (a playlist is none), or its header is damaged or "
                f"cut off ({error.strerror})",
            ) from error
        except OSError as error:
            raise VideoError(self.path, 0, f"cannot be opened ({error.strerror})") from error

    def _stream(self, container: av.container.InputContainer) -> VideoStream:
        if not container.streams.video:
            raise VideoError(self.path, 0, "the file has no video in it, only other streams")
        return container.streams.video[0]

    def _decode(self, check_end: bool) -> Iterator[np.ndarray]:
        decoded = packets = marked = 0
        times: list[int] = []
        size = None
        try:
            with self._open() as container:
                stream = self._stream(container)
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    if packet.is_corrupt:
                        # A transport stream marks packets also where two were joined.
                        if container.format.name != "mpegts":
                            raise VideoError(self.path, decoded, "the file is damaged or cut off")
                        marked += 1
                    for frame in packet.decode():
                        if frame.is_corrupt:
                            raise VideoError(self.path, decoded, "a frame is damaged or cut off")
                        image = upright(frame)
                        size = size or image.shape[:2]
                        if image.shape[:2] != size:
                            raise VideoError(
                                self.path, decoded, _changed_size(image.shape[:2], size)
                            )
                        if frame.pts is not None:
                            times.append(frame.pts)
                        decoded += 1
                        yield image
                if check_end:
                    self._check_end(stream, packets, decoded)
                    self._warn_of_losses(marked, missing_frames(times))
                    self._warn_of_an_early_end(container, stream, times)
        except av.FFmpegError as error:
            raise VideoError(
                self.path, decoded, f"the video is damaged or cut off ({error.strerror})"
            ) from error

    def _check_end(self, stream: VideoStream, packets: int, decoded: int) -> None:
        """Raises if the file promises more than there was: some formats just end when cut off."""
        if packets < stream.frames:
            raise VideoError(
                self.path, decoded, f"the video is cut off, its header says {stream.frames} frames"
            )
        reason = cut_off_reason(self.path)
        if reason is not None:
            raise VideoError(self.path, decoded, f"the video is cut off: {reason}")

    def _warn_of_losses(self, marked: int, missing: int) -> None:
        if marked:
            _logger.warning(
                "%s: packets that are marked as damaged or after a gap: %d", self.path, marked
            )
        if missing:
            _logger.warning(
                "%s: about %d frames are missing, by the time stamps of the others; the file may "
                "be damaged",
                self.path,
                missing,
            )

    def _warn_of_an_early_end(
        self, container: av.container.InputContainer, stream: VideoStream, times: Sequence[int]
    ) -> None:
        if stream.time_base is None or not times:
            return
        if stream.duration is not None:
            declared = stream.duration * stream.time_base
        elif container.duration is not None:
            declared = Fraction(container.duration, av.time_base)
        else:
            return
        played = max(times) * stream.time_base
        if played + max(3 / self.rate, declared / 20) < declared:
            _logger.warning(
                "%s: the frames cover %.2f of the %.2f seconds that the file declares; it may be "
                "damaged",
                self.path,
                played,
                declared,
            )


def missing_frames(times: Sequence[int]) -> int:
    """Estimates how many frames are missing in a video of a constant rate.

    Args:
        times: Time stamps of the frames, in any unit, in the order of playing.

    Returns:
        The number of frames that fit into the gaps; 0 where the rate varies by itself, that is
        where fewer than nine of ten steps are as long as most.
    """
    steps = np.diff(np.asarray(times, dtype=np.float64))
    if len(steps) < 10:
        return 0
    usual = float(np.median(steps))
    # Time stamps are rounded, in Matroska to milliseconds.
    regular = np.abs(steps - usual) <= max(1.0, usual / 10)
    if usual <= 0 or regular.mean() < 0.9:
        return 0
    gaps = steps[steps > 1.5 * usual]
    return int(np.sum(np.round(gaps / usual) - 1))


def upright(frame: VideoFrame) -> np.ndarray:
    """Returns a decoded frame as uint8 RGB (H, W, 3), rotated as its metadata says."""
    # The metadata gives counterclockwise degrees by which the picture is to be rotated.
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarters))


def _changed_size(new: tuple[int, ...], first: tuple[int, ...]) -> str:
    return (
        f"the frame size changes from {first[1]}x{first[0]} to {new[1]}x{new[0]}; "
        "all frames of a video must have one size"
    )


__all__ = ["FOLDER_RATE", "FrameSource", "VideoError", "missing_frames", "open_video", "upright"]
