"""Training and evaluation data of a run: which videos, which clips, on which process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from vss_models.data import (
    PUBLISHED_OFFSETS,
    ClassTable,
    ClipSampler,
    ClipTestDataset,
    ClipTrainDataset,
    EvaluationTransform,
    TrainTransform,
    VideoShardSampler,
    check_offsets,
    choose_classes,
    evaluation_loader,
    train_loader,
)
from vss_models.training.resumable_loader import ENDLESS, ResumableLoader

IDLE = "idle"
"""Key of the one item that a process without a video gets in an evaluation."""


class _IdleLoader:
    """Stands in for the loader of a process that has no video to evaluate.

    There may be more processes than videos, and Lightning allows no empty loader.
    """

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, bool]]:
        yield {IDLE: True}


class VideoDataModule(pl.LightningDataModule):
    """A data set in the VSPW layout, for training and evaluation on any number of processes.

    The trainer must not put its own samplers in (``use_distributed_sampler=False``): training clips
    are dealt out by position in one stream, evaluation videos as a whole.

    Args:
        root: Folder of the data set.
        num_classes: Number of classes; None counts those of ``ROOT/classes.txt``, and takes VSPW's
            124 where there is no such file.
        label_mapping: How mask values become classes: "vspw" (0 and 255 ignored, others minus one),
            "identity" (255 ignored), or a dictionary from mask value to class.
        offsets: Frames of the references relative to the target, oldest first; empty for a
            per-frame model.
        train_split: List of training videos, ``ROOT/<train_split>.txt``.
        val_split: List of videos for evaluation during training.
        test_split: List of videos for ``vss test``.
        train_transform: Augmentation.
        evaluation_transform: Resize at evaluation.
        batch_size: Clips a step on each process.
        num_workers: Loading processes for each training process.
        max_val_videos: Evaluate on the first so many videos only during training; None for all.
        seed: Seed of the order of clips and of the augmentation.

    Raises:
        ValueError: If a number is out of range or the offsets are not ascending and negative.
    """

    def __init__(
        self,
        root: Path | None = None,
        num_classes: int | None = None,
        label_mapping: str | dict[int, int] = "vspw",
        offsets: list[int] = list(PUBLISHED_OFFSETS),  # noqa: B006 (never changed)
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        train_transform: TrainTransform = TrainTransform(),  # noqa: B008 (frozen)
        evaluation_transform: EvaluationTransform = EvaluationTransform(),  # noqa: B008 (frozen)
        batch_size: int = 2,
        num_workers: int = 4,
        max_val_videos: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0 or (max_val_videos is not None and max_val_videos < 1):
            raise ValueError(
                "batch_size and max_val_videos must be at least 1 and num_workers at least 0, got "
                f"{batch_size}, {max_val_videos} and {num_workers}"
            )
        self.root = root
        self._num_classes = num_classes
        self.label_mapping = label_mapping
        self.offsets = check_offsets(offsets)
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.train_transform = train_transform
        self.evaluation_transform = evaluation_transform
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_val_videos = max_val_videos
        self.seed = seed

    @property
    def num_classes(self) -> int:
        """Number of classes, given or counted.

        Raises:
            ValueError: If it has to be counted and no root is set or the list cannot be read.
        """
        return len(self.class_table()) if self._num_classes is None else self._num_classes

    def class_table(self) -> ClassTable:
        """Names and colours of the classes.

        Raises:
            ValueError: If no root is set or the data set has another number of classes.
        """
        return choose_classes(self._checked_root(), self._num_classes, self.label_mapping)

    def prepare_data(self) -> None:
        """Reports a missing root before any process starts to work."""
        self._checked_root()

    def train_dataloader(self) -> ResumableLoader:
        """Augmented clips in an endless stream."""
        dataset = self._training_dataset()
        clips = self._stream(dataset)
        loader = train_loader(
            dataset,
            clips,
            self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory(),
        )
        return ResumableLoader(loader)

    def training_items(self, batch: int) -> list[tuple[str, dict[str, Tensor]]]:
        """The clips of one of this process's training batches, made again.

        Args:
            batch: Number of the batch, counted from 0 over the whole run.

        Returns:
            For each clip the name of its video, and the clip as the data set gives it.
        """
        dataset = self._training_dataset()
        stream = self._stream(dataset)
        stream.start = batch * self.batch_size * stream.world_size
        keys = list(islice(stream, self.batch_size))
        return [(dataset.videos[number].name, dataset[epoch, number]) for epoch, number in keys]

    def val_dataloader(self) -> DataLoader[Any] | _IdleLoader:
        """Frames of the validation videos in order."""
        return self._evaluation_loader(self.val_split, self.max_val_videos)

    def test_dataloader(self) -> DataLoader[Any] | _IdleLoader:
        """Frames of the test videos in order."""
        return self._evaluation_loader(self.test_split, None)

    def evaluation_dataset(self, split: str, single_frames: bool = False) -> ClipTestDataset:
        """The labelled videos of a split.

        Args:
            split: Name of the list of videos.
            single_frames: Whether items are frames without their references.
        """
        return ClipTestDataset(
            self._checked_root(),
            split,
            offsets=() if single_frames else self.offsets,
            transform=self.evaluation_transform,
            num_classes=self._num_classes,
            label_mapping=self.label_mapping,
            labelled=True,
        )

    def _training_dataset(self) -> ClipTrainDataset:
        return ClipTrainDataset(
            self._checked_root(),
            self.train_split,
            offsets=self.offsets,
            transform=self.train_transform,
            num_classes=self._num_classes,
            label_mapping=self.label_mapping,
            seed=self.seed,
        )

    def _stream(self, dataset: ClipTrainDataset) -> ClipSampler:
        rank, world_size = self._shard()
        return ClipSampler(len(dataset), ENDLESS, seed=self.seed, rank=rank, world_size=world_size)

    def _evaluation_loader(
        self, split: str, max_videos: int | None
    ) -> DataLoader[Any] | _IdleLoader:
        dataset = self.evaluation_dataset(split, single_frames=True)
        rank, world_size = self._shard()
        frames = VideoShardSampler(dataset.video_lengths[:max_videos], rank, world_size)
        if len(frames) == 0:
            return _IdleLoader()
        return evaluation_loader(
            dataset,
            frames,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory(),
        )

    def _shard(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _pin_memory(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _checked_root(self) -> Path:
        if self.root is None:
            raise ValueError(
                "data.root is not set: give the folder of a data set in the VSPW layout, "
                "--data.root FOLDER"
            )
        return self.root
