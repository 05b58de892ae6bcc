"""Deterministic loading: the same items whatever the workers, processes and interruptions."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.support.vspw_files import write_dataset
from vss_models.data import (
    ClipSampler,
    ClipTestDataset,
    ClipTrainDataset,
    EvaluationTransform,
    TrainTransform,
    VideoShardSampler,
    evaluation_loader,
    item_generator,
    train_loader,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("loaders") / "set", (12, 11, 10))


def test_stream_is_one_shuffle_after_another():
    stream = list(ClipSampler(5, 23, seed=1))
    assert [epoch for epoch, _ in stream] == [position // 5 for position in range(23)]
    for epoch in range(4):
        assert sorted(item for e, item in stream if e == epoch) == list(range(5))
    orders = {tuple(item for e, item in stream if e == epoch) for epoch in range(4)}
    assert len(orders) > 1
    assert stream == list(ClipSampler(5, 23, seed=1))
    assert stream != list(ClipSampler(5, 23, seed=2))


def test_stream_without_shuffle():
    stream = ClipSampler(3, 7, shuffle=False)
    assert [item for _, item in stream] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("start", [0, 4, 12, 22, 24, 30])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_and_resumes_share_one_stream(start, world_size):
    whole = list(ClipSampler(5, 24, seed=3))
    shards = [
        ClipSampler(5, 24, seed=3, rank=rank, world_size=world_size, start=start)
        for rank in range(world_size)
    ]
    lengths = {len(shard) for shard in shards}
    assert lengths == {max(0, 24 - start) // world_size}
    turns = zip(*shards, strict=True)
    together = [key for turn in turns for key in turn]
    assert together == whole[start : start + len(together)]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_items": 0},
        {"num_samples": 0},
        {"start": -1},
        {"rank": 2, "world_size": 2},
        {"rank": 0, "world_size": 0},
    ],
)
def test_wrong_streams(settings):
    with pytest.raises(ValueError, match="must be"):
        ClipSampler(**{"num_items": 3, "num_samples": 5, **settings})


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_videos_are_shared_out_whole(world_size):
    lengths = [7, 1, 12, 3, 9, 9]
    starts = [sum(lengths[:video]) for video in range(len(lengths))]
    shards = [VideoShardSampler(lengths, rank, world_size) for rank in range(world_size)]
    for shard in shards:
        expected = [
            starts[video] + frame for video in shard.videos for frame in range(lengths[video])
        ]
        assert list(shard) == expected
        assert len(shard) == len(expected)
    assert Counter(item for shard in shards for item in shard) == Counter(range(sum(lengths)))
    assert max(map(len, shards)) - min(map(len, shards)) <= max(lengths)


def test_one_process_sees_all_frames_in_order():
    assert list(VideoShardSampler([4, 2, 6])) == list(range(12))


def test_item_generators_differ():
    keys = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    first = {key: torch.rand(4, generator=item_generator(*key)) for key in keys}
    assert len({tuple(values.tolist()) for values in first.values()}) == len(keys)
    assert torch.equal(torch.rand(4, generator=item_generator(2, 1, 0)), first[2, 1, 0])


def test_training_batches_do_not_depend_on_the_workers(root):
    transform = TrainTransform(scale=(64, 48), crop=(32, 48))
    dataset = ClipTrainDataset(root, transform=transform, seed=9)
    runs = [
        list(train_loader(dataset, ClipSampler(3, 9, seed=9), 2, num_workers=workers))
        for workers in (0, 1, 2)
    ]
    for batches in runs:
        assert len(batches) == 4
        for batch, expected in zip(batches, runs[0], strict=True):
            assert batch["clip"].shape == (2, 4, 3, 32, 48)
            assert batch["labels"].shape == (2, 4, 32, 48)
            assert torch.equal(batch["clip"], expected["clip"])
            assert torch.equal(batch["labels"], expected["labels"])
    resumed = train_loader(dataset, ClipSampler(3, 9, seed=9, start=4), 2, num_workers=0)
    assert torch.equal(next(iter(resumed))["clip"], runs[0][2]["clip"])


def test_evaluation_batches_keep_the_order(root):
    dataset = ClipTestDataset(root, "train", transform=EvaluationTransform(scale=None))
    sampler = VideoShardSampler(dataset.video_lengths)
    batches = list(evaluation_loader(dataset, sampler, num_workers=2))
    assert [(batch["video"], batch["frame_index"]) for batch in batches] == [
        (name, frame)
        for name, length in (("a", 12), ("b", 11), ("c", 10))
        for frame in range(length)
    ]
    assert batches[0]["clip"].shape == (1, 1, 3, 32, 32)
    assert batches[9]["clip"].shape == (1, 4, 3, 32, 32)
    assert torch.equal(batches[9]["clip"][0], dataset[9]["clip"])
    assert torch.equal(batches[9]["labels"][0], dataset[9]["labels"])
