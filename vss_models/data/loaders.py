"""Deterministic loading: which item comes when, on which process, and with which random numbers.

Everything here is a function of the seed and of positions, never of a worker's state. The same seed
gives the same batches with any number of workers, a resumed run starts at any position without
replaying what came before, and k processes together see what one process would.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def item_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Random generator of one item, a function of the three numbers alone."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _check_shard(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size-1, got rank {rank} of {world_size}")


class ClipSampler(Sampler[tuple[int, int]]):
    """An unbroken stream of (epoch, item number) for training by iterations.

    The stream runs through a new shuffle of all items in every epoch, without a pause between
    epochs. Process `rank` of `world_size` takes every `world_size`-th element, so k processes with
    batches of b draw the same items in a step as one process with batches of k·b.

    Args:
        num_items: Length of the data set.
        num_samples: Length of the stream over all processes together, counted from 0 whatever
            `start` is.
        seed: Seed of the shuffles.
        shuffle: Whether to shuffle.
        rank: Number of this process.
        world_size: Number of processes.
        start: Number of elements, over all processes, that an earlier run has used up. It may be
            changed at any time and counts from the next iteration on.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        num_items: int,
        num_samples: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        _check_shard(rank, world_size)
        if num_items < 1 or num_samples < 1 or start < 0:
            raise ValueError(
                "num_items and num_samples must be at least 1 and start at least 0, got "
                f"{num_items}, {num_samples} and {start}"
            )
        self.num_items = num_items
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __len__(self) -> int:
        """Number of elements left for this process, the same for all (a ragged end is cut)."""
        return max(0, self.num_samples - self.start) // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.start + self.rank
        order: list[int] = []
        order_epoch = -1
        for position in range(first, first + len(self) * self.world_size, self.world_size):
            epoch, place = divmod(position, self.num_items)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            yield epoch, order[place]

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_items))
        # -1 is no item's number, so that no item shares the shuffle's random numbers.
        generator = item_generator(self.seed, epoch, -1)
        return torch.randperm(self.num_items, generator=generator).tolist()


class VideoShardSampler(Sampler[int]):
    """All frames of this process's share of the videos, in order, each exactly once.

    Videos stay whole, because consistency over time is measured within one process. Longest first,
    each video goes to the process with the fewest frames so far; nothing is repeated to fill up, so
    processes may have different lengths.

    Args:
        video_lengths: Number of frames of each video, in the order of the data set.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: `rank` is not in 0..world_size-1.
    """

    def __init__(self, video_lengths: Sequence[int], rank: int = 0, world_size: int = 1) -> None:
        _check_shard(rank, world_size)
        loads = [0] * world_size
        mine: list[int] = []
        for video in sorted(range(len(video_lengths)), key=lambda v: (-video_lengths[v], v)):
            owner = loads.index(min(loads))
            loads[owner] += video_lengths[video]
            if owner == rank:
                mine.append(video)
        self.videos = sorted(mine)
        starts = [0]
        for length in video_lengths:
            starts.append(starts[-1] + length)
        self._items = [
            item for video in self.videos for item in range(starts[video], starts[video + 1])
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)


def train_loader(
    dataset: Dataset[Any],
    sampler: ClipSampler,
    batch_size: int,
    *,
    num_workers: int = 2,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Loader of training batches ``{"clip": (B,T,3,H,W), "labels": (B,T,H,W)}``.

    Args:
        dataset: A :class:`vss_models.data.datasets.ClipTrainDataset`.
        sampler: The stream of items of this process.
        batch_size: Clips a batch and process; a last smaller batch is dropped.
        num_workers: Worker processes; they change nothing but the speed.
        pin_memory: Whether batches come in page-locked memory, for copies to a GPU.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        drop_last=True,
        worker_init_fn=_begin_worker,
    )


def evaluation_loader(
    dataset: Dataset[Any],
    sampler: Sampler[int],
    *,
    num_workers: int = 2,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Loader of evaluation items, one a batch, in the sampler's order.

    Args:
        dataset: A :class:`vss_models.data.datasets.ClipTestDataset`.
        sampler: A :class:`VideoShardSampler` of this process.
        num_workers: Worker processes.
        pin_memory: Whether tensors come in page-locked memory, for copies to a GPU.

    Returns:
        A loader of dictionaries as the data set gives them, with ``clip`` (1,T,3,H,W) and
        ``labels`` (1,h,w).
    """
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_add_batch_dimension,
        worker_init_fn=_begin_worker,
    )


def _add_batch_dimension(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return {
        name: value[None] if isinstance(value, torch.Tensor) else value
        for name, value in item.items()
    }


def _begin_worker(worker: int) -> None:
    # Workers are the parallelism; more threads in each would only fight over the cores.
    torch.set_num_threads(1)
    # A terminal and a scheduler signal all processes at once. The main one decides when to end, and
    # needs its workers until then; they end with it.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
