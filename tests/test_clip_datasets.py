"""Training and evaluation clips read from a data set, compared with the files they come from."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from tests.support.vspw_files import write_dataset, write_video
from vss_models.data import (
    ClipTestDataset,
    ClipTrainDataset,
    EvaluationTransform,
    TrainTransform,
    denormalise,
    evaluation_references,
    label_table,
    read_image,
    read_mask,
)

AS_STORED = EvaluationTransform(scale=None, divisor=1)
PLAIN = TrainTransform(
    scale=(32, 24), ratio_range=(1.0, 1.0), crop=(24, 32), flip=0.0, photometric=None
)


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set")


def naming(path) -> str:
    return re.escape(str(path))


def test_training_items_are_clips_of_the_video(root):
    dataset = ClipTrainDataset(root, transform=PLAIN, seed=1)
    assert (len(dataset), dataset.class_names) == (2, ("sky", "river bank", "road"))
    video = dataset.videos[0]
    seen = set()
    for epoch in range(60):
        item = dataset[epoch, 0]
        assert item["clip"].shape == (4, 3, 24, 32)
        frames = [int(red) - 10 for red in denormalise(item["clip"])[:, 0, 0, 0]]
        seen.add(tuple(frames))
        table = label_table("vspw", 3)
        for frame, image, labels in zip(frames, item["clip"], item["labels"], strict=True):
            assert torch.equal(denormalise(image), read_image(video.frames[frame]))
            assert torch.equal(labels, read_mask(video.masks[frame], table))
    forwards = {(t - 9, t - 6, t - 3, t) for t in (9, 10, 11)}
    assert seen == forwards | {tuple(11 - frame for frame in clip) for clip in forwards}


def test_items_depend_on_seed_epoch_and_number_alone(root):
    dataset, again = (ClipTrainDataset(root, seed=5) for _ in range(2))
    first = dataset[3, 1]
    dataset[0, 0]
    assert torch.equal(again[3, 1]["clip"], first["clip"])
    assert torch.equal(again[1]["clip"], again[0, 1]["clip"])
    assert not torch.equal(again[4, 1]["clip"], first["clip"])
    assert not torch.equal(ClipTrainDataset(root, seed=6)[3, 1]["clip"], first["clip"])


def test_short_videos_are_left_out_and_counted(tmp_path, caplog):
    root = write_dataset(tmp_path / "set", (9, 10, 3))
    with caplog.at_level(logging.WARNING):
        dataset = ClipTrainDataset(root)
    assert ([video.name for video in dataset.videos], dataset.num_skipped) == (["b"], 2)
    assert "2 of 3 videos have fewer than 10 frames" in caplog.text
    assert len(ClipTrainDataset(root, offsets=(-2, -1))) == 3
    (root / "train.txt").write_text("a\nc\n")
    with pytest.raises(ValueError, match=f"{naming(root / 'train.txt')}: all 2 videos are shorter"):
        ClipTrainDataset(root)


def test_evaluation_items_follow_the_schedule(root):
    dataset = ClipTestDataset(root, "train", transform=AS_STORED)
    assert dataset.video_lengths == [12, 11]
    assert len(dataset) == 23
    number = 0
    for video_index, video in enumerate(dataset.videos):
        for frame in range(len(video)):
            item = dataset[number]
            references = evaluation_references(frame, (-9, -6, -3))
            reds = denormalise(item["clip"])[:, 0, 0, 0].tolist()
            assert [red - 10 for red in reds] == [*references, frame]
            assert item["single_frame"] == (frame < 3)
            assert (item["video"], item["frame"]) == (video.name, f"{frame:08d}")
            assert (item["video_index"], item["frame_index"]) == (video_index, frame)
            assert (item["num_frames"], item["original_size"]) == (len(video), (24, 32))
            expected = read_mask(video.masks[frame], label_table("vspw", 3))
            assert torch.equal(item["labels"], expected)
            number += 1


def test_labels_keep_their_size_when_the_clip_is_resized(root):
    item = ClipTestDataset(root, "train", transform=EvaluationTransform(scale=(50, 40)))[20]
    assert item["clip"].shape == (4, 3, 64, 64)
    assert item["labels"].shape == item["original_size"] == (24, 32)


def test_iterating_a_video_reads_frame_by_frame(root):
    dataset = ClipTestDataset(root, "train", transform=AS_STORED)
    items = list(dataset.iterate_video(1))
    assert [item["frame_index"] for item in items] == list(range(11))
    for frame, item in enumerate(items):
        assert item["clip"].shape == (1, 3, 24, 32)
        assert torch.equal(item["clip"][0], dataset[12 + frame]["clip"][-1])
        assert torch.equal(item["labels"], dataset[12 + frame]["labels"])


def test_inference_without_masks(root):
    for name in ("a", "b"):
        folder = root / "data" / name / "mask"
        folder.rename(root / f"mask_of_{name}")
    dataset = ClipTestDataset(root, None)
    assert not dataset.labelled
    assert "labels" not in dataset[11]


def test_masks_can_be_left_unread(root):
    write_video(root, "c", 2, labels=200)
    assert "labels" not in ClipTestDataset(root, None, labelled=False)[24]
    with pytest.raises(ValueError, match=naming(root / "data" / "c" / "mask" / "00000001.png")):
        ClipTestDataset(root, None)[24]
