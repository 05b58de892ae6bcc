"""Segmentation of whole videos into overlays and label files; what `vss segment` does for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vss_models.data import ClassTable
from vss_models.data.images import IMAGE_SUFFIXES
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.inference.threads import ReadAhead, WriteBehind
from vss_models.video import FrameSource, VideoWriter
from vss_models.visualize import Legend, overlay, write_label_png

# fmt: off
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
)
# fmt: on

OVERLAY_FILE = "overlay.mp4"
LABEL_FOLDER = "labels"

FIRST_LABELS = {"identity": 0, "vspw": 1}
"""The label of the first class in label files, by label mapping."""


@dataclass(frozen=True)
class OutputSettings:
    """What to write for a video.

    Attributes:
        overlay: Whether to write the overlay video.
        labels: Whether to write the label files.
        opacity: Weight of the class colours in the overlay, 0..1.
        label_mapping: What the pixels of a label file are: "identity", the classes; "vspw", one
            more than the classes, as masks of a data set in the VSPW layout have them.
    """

    overlay: bool = True
    labels: bool = True
    opacity: float = 0.5
    label_mapping: str = "identity"

    def __post_init__(self) -> None:
        if not (self.overlay or self.labels):
            raise ValueError("overlay and labels are both off: there is nothing to write")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity must lie in 0..1, got {self.opacity}")
        if self.label_mapping not in FIRST_LABELS:
            raise ValueError(
                f"label_mapping must be {' or '.join(FIRST_LABELS)}, got {self.label_mapping!r}"
            )


class SegmentedVideo(NamedTuple):
    """What became of a video's frames.

    Attributes:
        num_frames: Frames that were labelled.
        num_dropped: Frames of a live source that were not, because newer ones had come.
    """

    num_frames: int
    num_dropped: int


def find_inputs(source: Path) -> dict[str, Path]:
    """Finds the videos in an input.

    Args:
        source: A video file; a folder of frames; or a folder of such files and folders. A folder of
            frames may also hold them in a folder `origin`, as VSPW does.

    Returns:
        The videos by name, in the order of their names. The name is that of the file without its
        suffix, or that of the folder.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no video, or both frames and videos.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such video file or folder")
    if not source.is_dir():
        # What is neither file nor folder, `open_video` refuses by name.
        return {source.stem: source}
    own_frames = _frame_folder(source)
    entries = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    files = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if own_frames is not None:
        if files:
            raise ValueError(
                f"{source} holds both frames and videos ({files[0].name}); give one of them"
            )
        return {source.resolve().name: own_frames}
    folders = [(path, _frame_folder(path)) for path in entries if path.is_dir()]
    stems = [path.stem for path in files] + [path.name for path, frames in folders if frames]
    found = {(p.stem if stems.count(p.stem) == 1 else p.name): p for p in files}
    found.update((path.name, frames) for path, frames in folders if frames)
    if not found:
        raise ValueError(
            f"{source} holds no video: expected video files, images, or folders of images "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    return dict(sorted(found.items()))


def check_apart(folder: Path, source: Path) -> None:
    """Checks that an output folder does not lie within the input, whose files it could replace.

    Raises:
        ValueError: If it does.
    """
    target, origin = folder.resolve(), source.resolve()
    if origin.is_dir() and (target == origin or origin in target.parents):
        raise ValueError(f"the output {folder} would lie within the input {source}")


def output_files(folder: Path, settings: OutputSettings) -> list[Path]:
    """Lists what an earlier run left in a video's output folder and a new one would replace."""
    found = []
    if settings.overlay and (folder / OVERLAY_FILE).exists():
        found.append(folder / OVERLAY_FILE)
    if settings.labels:
        found += sorted((folder / LABEL_FOLDER).glob("*.png"))
    return found


def incomplete_folder(folder: Path) -> Path:
    """Returns where results are written while those of an earlier run are in a video's folder."""
    return folder.with_name(f"{folder.name}.incomplete")


def segment_video(
    segmenter: StreamingSegmenter,
    source: FrameSource,
    folder: Path,
    classes: ClassTable,
    settings: OutputSettings | None = None,
    overwrite: bool = False,
    on_frame: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> SegmentedVideo:
    """Labels a video and writes the result.

    Decoding, the model and encoding overlap, on three threads. Every frame of a file is labelled.
    Of a live source the newest frame is, and those that came in the meantime are dropped; it ends
    with the source or with a KeyboardInterrupt.

    Writes `overlay.mp4`, the frames under the colours of their classes beside a legend, and
    `labels/<frame>.png`, palette files whose pixels are the classes, named as the frames of a
    folder or numbered from 000000. If the video is damaged, what was decoded is written. Dropped
    frames have no label file, and the overlay shows the next frame in their place, so that it plays
    at the speed of the source.

    Args:
        segmenter: The model; it is reset before and after.
        source: The frames.
        folder: Where to write; made if need be.
        classes: Names and colours of the classes.
        settings: What to write.
        overwrite: Whether the files of an earlier run in `folder` may be replaced. That happens at
            the end, and all of them are removed then, also those of frames that are no more. What
            an interrupted or damaged video leaves is kept beside them, in `<folder>.incomplete`.
        on_frame: Called after each frame with the frame and its labels, on another thread.

    Returns:
        How many frames were labelled and how many dropped.

    Raises:
        FileExistsError: If there are files of an earlier run and `overwrite` is not set.
        ValueError: If `classes` does not fit the model, or the labels don't fit into 8 bits.
        VideoError: If the video is damaged.
    """
    settings = OutputSettings() if settings is None else settings
    if len(classes) != segmenter.model.num_classes:
        raise ValueError(
            f"classes must name the model's {segmenter.model.num_classes} classes, got "
            f"{len(classes)}"
        )
    # Of the 256 values of a label file, "vspw" keeps 0 and 255 for pixels without a class.
    most = 254 if settings.label_mapping == "vspw" else 256
    if settings.labels and len(classes) > most:
        raise ValueError(f"label files hold at most {most} classes, the model has {len(classes)}")
    earlier = output_files(folder, settings)
    if earlier and not overwrite:
        raise FileExistsError(f"{earlier[0]} exists: add --overwrite or choose another folder")
    target = incomplete_folder(folder) if earlier else folder
    for path in output_files(target, settings):
        path.unlink()
    result = _segment_into(target, segmenter, source, classes, settings, on_frame)
    if earlier:
        for path in earlier:
            path.unlink()
        for path in output_files(target, settings):
            new = folder / path.relative_to(target)
            new.parent.mkdir(parents=True, exist_ok=True)
            path.rename(new)
        for emptied in (target / LABEL_FOLDER, target):
            # Something else that lies there stays.
            with contextlib.suppress(OSError):
                emptied.rmdir()
    return result


def _segment_into(
    folder: Path,
    segmenter: StreamingSegmenter,
    source: FrameSource,
    classes: ClassTable,
    settings: OutputSettings,
    on_frame: Callable[[np.ndarray, np.ndarray], None] | None,
) -> SegmentedVideo:
    (folder / LABEL_FOLDER if settings.labels else folder).mkdir(parents=True, exist_ok=True)
    segmenter.reset()
    try:
        if not settings.overlay:
            return _run(segmenter, source, folder, classes, settings, None, None, on_frame)
        height, width = source.size
        legend = Legend(classes.names, classes.palette(), height, max_width=max(width // 3, 120))
        size = (height, width + legend.width)
        path = folder / OVERLAY_FILE
        with VideoWriter(path, source.rate, size, keep_partial=True) as writer:
            return _run(segmenter, source, folder, classes, settings, writer, legend, on_frame)
    finally:
        segmenter.reset()


def _run(
    segmenter: StreamingSegmenter,
    source: FrameSource,
    folder: Path,
    classes: ClassTable,
    settings: OutputSettings,
    writer: VideoWriter | None,
    legend: Legend | None,
    on_frame: Callable[[np.ndarray, np.ndarray], None] | None,
) -> SegmentedVideo:
    palette = classes.palette()
    first = FIRST_LABELS[settings.label_mapping]
    label_palette = np.roll(palette, first, axis=0)
    num_written = 0

    def write(entry: tuple[int, np.ndarray, Tensor]) -> None:
        nonlocal num_written
        number, frame, result = entry
        # On this thread, so that the model need not wait for a GPU's result to be copied.
        labels = result.cpu().numpy()
        if settings.labels:
            names = source.frame_names
            name = f"{number:06d}" if names is None else names[number]
            # Added in a type that the largest label does not overflow.
            stored = labels + np.int16(first) if first else labels
            write_label_png(folder / LABEL_FOLDER / f"{name}.png", stored, label_palette)
        if writer is not None and legend is not None:
            blended = overlay(frame, labels, palette, settings.opacity, ignore_index=None)
            picture = np.hstack([blended, legend.draw(labels)])
            while writer.num_frames <= number:
                writer.write(picture)
        num_written += 1
        if on_frame is not None:
            on_frame(frame, labels)

    num_read = num_dropped = 0
    with (
        WriteBehind(write) as written,
        ReadAhead(source, newest_only=source.is_live) as frames,
    ):
        try:
            for number, frame in frames:
                num_dropped += number - num_read
                num_read = number + 1
                written((number, frame, segmenter.step(frame)))
        except KeyboardInterrupt:
            # The usual end of a live source, whose frames so far are the result.
            if not source.is_live:
                raise
    return SegmentedVideo(num_written, num_dropped)


def _frame_folder(folder: Path) -> Path | None:
    """Returns the folder that holds the frames of a video folder, if it is one."""
    for candidate in (folder, folder / "origin"):
        if candidate.is_dir() and any(
            path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            for path in candidate.iterdir()
        ):
            return candidate
    return None


__all__ = [
    "OutputSettings",
    "SegmentedVideo",
    "check_apart",
    "find_inputs",
    "incomplete_folder",
    "output_files",
    "segment_video",
]
