"""Reader of the VSPW layout, on the disk side: which videos and which frames.

    ROOT/train.txt, val.txt, test.txt      one video name a line
    ROOT/data/<video>/origin/<frame>.jpg   frames (jpg, jpeg or png), in the order of their names
    ROOT/data/<video>/mask/<frame>.png     8-bit masks of the same names; needed for training

Any data set in this layout can be read; see :mod:`vss_models.data.classes` for its classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vss_models.data.images import IMAGE_SUFFIXES, exif_orientation, read_image, read_mask
from vss_models.data.text import read_lines

_logger = logging.getLogger(__name__)
_warned_of_rotation: set[str] = set()
"""Videos whose rotated frames have been reported; once each is enough."""


@dataclass(frozen=True)
class VideoRecord:
    """One video on disk.

    Attributes:
        name: Name of the video.
        frames: Image files in playing order.
        masks: Mask files, one per frame; None for a video without labels.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...] | None

    def __len__(self) -> int:
        return len(self.frames)


def read_split(root: Path, split: str) -> list[str]:
    """Reads the video names of one split, ``ROOT/<split>.txt``.

    Blank lines, Windows line ends and a last line without a line end are fine.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: The list is empty, not UTF-8, repeats a name, or has one that is no plain folder
            name.
    """
    path = root / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such list of videos; a data set in the VSPW layout has one for each split"
        )
    lines = (line.strip() for line in read_lines(path))
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{path}: the list is empty, expected one video name a line")
    seen: set[str] = set()
    for name in names:
        if name in (".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"{path}: {name!r} is not the name of a folder in {root / 'data'}")
        if name in seen:
            raise ValueError(f"{path}: the video {name!r} is listed twice")
        seen.add(name)
    return names


def list_frames(folder: Path) -> tuple[Path, ...]:
    """Lists the images of a folder in playing order (numbers in names count as numbers).

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, or two images that differ only in their suffix.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of frames")
    frames: dict[str, Path] = {}
    others = 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others += 1
            continue
        if path.stem in frames:
            raise ValueError(
                f"{path}: {frames[path.stem].name} has the same name; remove one of the two"
            )
        frames[path.stem] = path
    if not frames:
        raise ValueError(f"{folder}: no image found, expected files in {', '.join(IMAGE_SUFFIXES)}")
    if others:
        _logger.warning("%s: %d entries are not images and are not used", folder, others)
    return tuple(sorted(frames.values(), key=_playing_order))


def _playing_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", path.stem)
    key = [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
    return key, path.name


def find_video(root: Path, name: str, labelled: bool | None = True) -> VideoRecord:
    """Finds the files of one video.

    Args:
        root: Folder of the data set.
        name: Name of the video.
        labelled: Whether masks are needed; None takes them where the video has a mask folder.

    Raises:
        FileNotFoundError: The video, its frames or a mask is not there; the message names the file.
        ValueError: The video has no images.
    """
    folder = root / "data" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: this video is listed but not on disk")
    frames = list_frames(folder / "origin")
    mask_folder = folder / "mask"
    if labelled is None:
        labelled = mask_folder.is_dir()
    if not labelled:
        return VideoRecord(name, frames, None)
    if not mask_folder.is_dir():
        raise FileNotFoundError(f"{mask_folder}: this video has no masks")
    present = {path.name for path in mask_folder.iterdir() if path.suffix == ".png"}
    masks = tuple(mask_folder / f"{frame.stem}.png" for frame in frames)
    missing = [mask for mask in masks if mask.name not in present]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: missing mask ({len(missing)} of {len(masks)} frames of this video)"
        )
    if len(present) > len(masks):
        _logger.warning("%s: %d masks have no frame", mask_folder, len(present) - len(masks))
    return VideoRecord(name, frames, masks)


def check_root(root: Path) -> None:
    """Raises a FileNotFoundError unless a folder looks like a data set in the VSPW layout."""
    if not (root / "data").is_dir():
        raise FileNotFoundError(f"{root / 'data'}: no such folder; is {root} in the VSPW layout?")


def find_videos(root: Path, split: str | None, labelled: bool | None = True) -> list[VideoRecord]:
    """Finds the videos of a split, or of the whole data set.

    Args:
        root: Folder of the data set.
        split: Name of the list, such as ``"train"``; None takes every folder in ``ROOT/data``.
        labelled: Whether masks are needed; None takes them if any video has them (then all must).

    Raises:
        FileNotFoundError: A folder, list, video or mask is not there; the message names the file.
        ValueError: A list or a video is empty.
    """
    check_root(root)
    if split is not None:
        names = read_split(root, split)
    else:
        names = sorted(path.name for path in (root / "data").iterdir() if path.is_dir())
        if not names:
            raise ValueError(f"{root / 'data'}: the folder has no videos")
    if labelled is None:
        labelled = any((root / "data" / name / "mask").is_dir() for name in names)
    return [find_video(root, name, labelled) for name in names]


def read_frames(video: VideoRecord, frames: Sequence[int]) -> torch.Tensor:
    """Reads frames of a video as (T, 3, H, W) uint8.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is damaged or the frames differ in size; the message names the file.
    """
    images = [read_image(video.frames[frame]) for frame in frames]
    for frame, image in zip(frames, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{video.frames[frame]}: {_size(image)}, but {video.frames[frames[0]]} of the same "
                f"video is {_size(images[0])}; all frames of a video must have one size"
            )
    return torch.stack(images)


def read_labels(
    video: VideoRecord, frame: int, table: np.ndarray, like: torch.Tensor
) -> torch.Tensor:
    """Reads the labels of one frame.

    Args:
        video: The video.
        frame: Frame number in it.
        table: Label table for :func:`read_mask`.
        like: The frame's image (..., H, W), whose size the mask must have.

    Returns:
        (H, W) uint8 class numbers, 255 where ignored.

    Raises:
        FileNotFoundError: The mask is not there.
        ValueError: The mask is damaged or has another size; the message names the file.
    """
    if video.masks is None:
        raise ValueError(f"{video.frames[frame]}: the video {video.name!r} has no masks")
    labels = read_mask(video.masks[frame], table)
    frame_file, mask_file = video.frames[frame], video.masks[frame]
    is_rotated = exif_orientation(frame_file) != 1 and exif_orientation(mask_file) == 1
    if labels.shape != like.shape[-2:]:
        hint = "; the frame is rotated by its EXIF data, the mask is not" if is_rotated else ""
        raise ValueError(
            f"{mask_file}: mask is {_size(labels)}, but its frame {frame_file} is "
            f"{_size(like)}{hint}"
        )
    if is_rotated and video.name not in _warned_of_rotation:
        _warned_of_rotation.add(video.name)
        _logger.warning(
            "%s: the frame is rotated or mirrored by its EXIF data, its mask %s is not; masks must "
            "show what viewers show",
            frame_file,
            mask_file,
        )
    return labels


def _size(pixels: torch.Tensor) -> str:
    """Width x height, as image tools print it."""
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"
