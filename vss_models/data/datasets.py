"""Data sets of clips from the VSPW layout: drawn at random for training, fixed for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from vss_models.data.classes import (
    ClassTable,
    label_table,
    numbered_classes,
    read_classes,
    vspw_classes,
)
from vss_models.data.clips import (
    PUBLISHED_OFFSETS,
    check_offsets,
    draw_training_clip,
    evaluation_references,
    shortest_video,
)
from vss_models.data.loaders import item_generator
from vss_models.data.transforms import EvaluationTransform, TrainTransform
from vss_models.data.vspw import VideoRecord, find_videos, read_frames, read_labels

_logger = logging.getLogger(__name__)


def choose_classes(
    root: Path | str,
    num_classes: int | None = None,
    label_mapping: str | Mapping[int, int] = "vspw",
) -> ClassTable:
    """Find the classes of a data set.

    They are read from ``ROOT/classes.txt`` if it is there. Otherwise 124 classes (or None) with the
    VSPW mapping are VSPW's own, and any other number gets placeholder names.

    Args:
        root: Folder of the data set.
        num_classes: Expected number of classes, or None.
        label_mapping: How mask values become classes, see
            :func:`vss_models.data.classes.label_table`.

    Raises:
        ValueError: `classes.txt` has another number of classes, or the number cannot be known.
    """
    listed = Path(root) / "classes.txt"
    if listed.is_file():
        table = read_classes(listed, label_mapping)
        if num_classes not in (None, len(table)):
            raise ValueError(
                f"{listed} names {len(table)} classes, but num_classes is {num_classes}: leave out "
                "num_classes (--data.num_classes) to take those of the list, or correct the list"
            )
        return table
    own = vspw_classes()
    if label_mapping == "vspw" and num_classes in (None, len(own)):
        return own
    if num_classes is None:
        raise ValueError(
            f"num_classes must be given with label_mapping {label_mapping!r}: there is no {listed}"
        )
    return numbered_classes(num_classes)


class ClipTrainDataset(Dataset[dict[str, torch.Tensor]]):
    """Training clips: an item is a video, from which one clip is drawn and augmented.

    What an item holds depends on nothing but `seed`, the epoch and the item's number, so every
    number of workers and every order of loading gives the same items. The key is the item's number
    or a pair (epoch, number), as :class:`vss_models.data.loaders.ClipSampler` yields it.

    Videos that are too short for the offsets are left out, and their number is logged.

    Args:
        root: Folder of the data set in the VSPW layout.
        split: Name of the list of videos.
        offsets: Reference offsets, oldest first; empty for single frames.
        transform: The augmentation.
        num_classes: Number of classes; None takes it from ``classes.txt``, or VSPW's 124.
        label_mapping: See :func:`vss_models.data.classes.label_table`.
        seed: Seed of all randomness.

    Attributes:
        classes: Names and colours.
        videos: The videos in use.
        num_skipped: Number of videos left out as too short.

    Raises:
        FileNotFoundError: A list, video or mask is not there; the message names the file.
        ValueError: A list is empty, or all videos are too short.
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        *,
        offsets: Sequence[int] = PUBLISHED_OFFSETS,
        transform: TrainTransform | None = None,
        num_classes: int | None = None,
        label_mapping: str | Mapping[int, int] = "vspw",
        seed: int = 0,
    ) -> None:
        self.root = Path(root)
        self.offsets = check_offsets(offsets)
        self.transform = TrainTransform() if transform is None else transform
        self.classes = choose_classes(self.root, num_classes, label_mapping)
        self.seed = seed
        self._table = label_table(label_mapping, len(self.classes))
        found = find_videos(self.root, split)
        shortest = shortest_video(self.offsets)
        self.videos = [video for video in found if len(video) >= shortest]
        self.num_skipped = len(found) - len(self.videos)
        if not self.videos:
            raise ValueError(
                f"{self.root / split}.txt: all {len(found)} videos are shorter than the {shortest} "
                f"frames that the offsets {self.offsets} need; use shorter offsets"
            )
        if self.num_skipped:
            _logger.warning(
                "%s: %d of %d videos have fewer than %d frames and are left out",
                self.root / f"{split}.txt",
                self.num_skipped,
                len(found),
                shortest,
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order."""
        return self.classes.names

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Draw and augment one clip.

        Returns:
            ``clip``: (T, 3, H, W) float32, normalised, the target last; ``labels``: (T, H, W)
            uint8, 255 where ignored.
        """
        epoch, number = key if isinstance(key, tuple) else (0, key)
        generator = item_generator(self.seed, epoch, number)
        video = self.videos[number]
        frames = draw_training_clip(len(video), self.offsets, generator)
        clip = read_frames(video, frames)
        labels = torch.stack([read_labels(video, frame, self._table, clip) for frame in frames])
        clip, labels = self.transform(clip, labels, generator)
        return {"clip": clip, "labels": labels}


class ClipTestDataset(Dataset[dict[str, Any]]):
    """Evaluation clips: an item is one target frame with its references, video after video.

    Args:
        root: Folder of the data set in the VSPW layout.
        split: Name of the list of videos; None takes every video in ``ROOT/data``.
        offsets: Reference offsets, oldest first; empty for single frames.
        transform: The resize.
        num_classes: Number of classes; None takes it from ``classes.txt``, or VSPW's 124.
        label_mapping: See :func:`vss_models.data.classes.label_table`.
        labelled: Whether to read masks; None reads them if any video has them (then all must).

    Attributes:
        classes: Names and colours.
        videos: The videos.
        labelled: Whether items have labels.

    Raises:
        FileNotFoundError: A list, video or mask is not there; the message names the file.
        ValueError: A list or a video is empty.
    """

    def __init__(
        self,
        root: Path | str,
        split: str | None = "val",
        *,
        offsets: Sequence[int] = PUBLISHED_OFFSETS,
        transform: EvaluationTransform | None = None,
        num_classes: int | None = None,
        label_mapping: str | Mapping[int, int] = "vspw",
        labelled: bool | None = None,
    ) -> None:
        self.root = Path(root)
        self.offsets = check_offsets(offsets)
        self.transform = EvaluationTransform() if transform is None else transform
        self.classes = choose_classes(self.root, num_classes, label_mapping)
        self._table = label_table(label_mapping, len(self.classes))
        self.videos: list[VideoRecord] = find_videos(self.root, split, labelled)
        self.labelled = self.videos[0].masks is not None
        self._items = [
            (video, frame)
            for video, record in enumerate(self.videos)
            for frame in range(len(record))
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order."""
        return self.classes.names

    @property
    def video_lengths(self) -> list[int]:
        """Number of frames of each video."""
        return [len(video) for video in self.videos]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Read one target frame with its references.

        Returns:
            ``clip``: (T, 3, H, W) float32, normalised, the target last; T is 1 where the schedule
            has no references. ``labels`` (if labelled): the target's (h, w) uint8 at its original
            size, 255 where ignored. ``video``, ``frame``: names. ``video_index``, ``frame_index``:
            numbers. ``num_frames``: length of the video. ``original_size``: (h, w).
            ``single_frame``: whether to use the per-frame logits, the frame having no references.
        """
        video, frame = self._items[number]
        references = evaluation_references(frame, self.offsets)
        return self._item(video, frame, references)

    def iterate_video(self, video: int) -> Iterator[dict[str, Any]]:
        """Yield the frames of one video in order, each alone and read once, for streaming.

        Items are as in :meth:`__getitem__` with T = 1.
        """
        for frame in range(len(self.videos[video])):
            yield self._item(video, frame, ())

    def _item(self, video: int, frame: int, references: tuple[int, ...]) -> dict[str, Any]:
        record = self.videos[video]
        clip = read_frames(record, (*references, frame))
        item: dict[str, Any] = {
            "clip": self.transform(clip),
            "video": record.name,
            "frame": record.frames[frame].stem,
            "video_index": video,
            "frame_index": frame,
            "num_frames": len(record),
            "original_size": (clip.shape[-2], clip.shape[-1]),
            "single_frame": not references,
        }
        if self.labelled:
            item["labels"] = read_labels(record, frame, self._table, clip)
        return item
