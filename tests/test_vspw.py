"""The VSPW layout: what is read, and for all that can be wrong an error that names the file."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vspw_files import write_dataset, write_video
from vss_models.data import (
    VSPW_CLASSES,
    ClipTestDataset,
    ClipTrainDataset,
    EvaluationTransform,
    TrainTransform,
    choose_classes,
    denormalise,
    evaluation_references,
    find_videos,
    generated_colours,
    label_table,
    list_frames,
    read_classes,
    read_image,
    read_mask,
    vspw_classes,
)
from vss_models.data.vspw import read_frames, read_labels, read_split

AS_STORED = EvaluationTransform(scale=None, divisor=1)
PLAIN = TrainTransform(
    scale=(32, 24), ratio_range=(1.0, 1.0), crop=(24, 32), flip=0.0, photometric=None
)


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set")


def naming(path) -> str:
    return re.escape(str(path))


# Lists of videos


@pytest.mark.parametrize(
    "content", [b"a\nb", b"a\r\nb\r\n", b"\n\na\n\nb\n\n", b"\xef\xbb\xbfa\n b \n"]
)
def test_split_lists_in_every_guise(root, content):
    (root / "train.txt").write_bytes(content)
    assert read_split(root, "train") == ["a", "b"]
    assert [video.name for video in find_videos(root, "train")] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n \r\n", "empty"),
        ("a\nb\na\n", "'a' is listed twice"),
        ("a\n../b\n", "not the name of a folder"),
    ],
)
def test_wrong_lists(root, content, message):
    (root / "train.txt").write_text(content)
    with pytest.raises(ValueError, match=f"{naming(root / 'train.txt')}.*{message}"):
        ClipTrainDataset(root)


def test_missing_list(root):
    with pytest.raises(FileNotFoundError, match=naming(root / "val.txt")):
        ClipTestDataset(root)


def test_missing_data_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "data")):
        find_videos(tmp_path, "train")


def test_listed_video_that_is_not_on_disk(root):
    (root / "train.txt").write_text("a\nghost\n")
    with pytest.raises(FileNotFoundError, match=naming(root / "data" / "ghost")):
        ClipTrainDataset(root)


def test_without_a_list_every_video_is_taken(root):
    assert [video.name for video in find_videos(root, None)] == ["a", "b"]


# Frames and masks on disk


def test_numbers_in_names_count_as_numbers(tmp_path):
    names = ["f10.png", "f9.jpg", "f1.JPEG", ".hidden.png"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in list_frames(tmp_path)] == ["f1.JPEG", "f9.jpg", "f10.png"]


def test_files_that_are_no_images_are_reported(tmp_path, caplog):
    (tmp_path / "1.png").touch()
    (tmp_path / "notes.doc").touch()
    with caplog.at_level(logging.WARNING):
        assert len(list_frames(tmp_path)) == 1
    assert f"{tmp_path}: 1 entries are not images" in caplog.text


def test_two_images_of_one_name(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "1.jpg").touch()
    with pytest.raises(ValueError, match=f"{naming(tmp_path)}/1.png: 1.jpg has the same name"):
        list_frames(tmp_path)


def test_empty_folder_of_frames(tmp_path):
    with pytest.raises(ValueError, match=f"{naming(tmp_path)}: no image found"):
        list_frames(tmp_path)
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "gone")):
        list_frames(tmp_path / "gone")


def test_missing_mask(root):
    mask = root / "data" / "b" / "mask" / "00000004.png"
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=f"{naming(mask)}: missing mask .1 of 11 frames"):
        ClipTrainDataset(root)


def test_missing_mask_folder(root):
    folder = root / "data" / "b" / "mask"
    folder.rename(folder.with_name("elsewhere"))
    for make in (ClipTrainDataset, lambda r: ClipTestDataset(r, "train")):
        with pytest.raises(FileNotFoundError, match=f"{naming(folder)}: this video has no masks"):
            make(root)


def test_mask_without_frame_is_reported(root, caplog):
    (root / "data" / "a" / "origin" / "00000003.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(find_videos(root, "train")[0]) == 11
    assert f"{root / 'data' / 'a' / 'mask'}: 1 masks have no frame" in caplog.text


# Pixels


def decode_or_none(path) -> torch.Tensor | None:
    """The pixels, or None for the one error that a broken file may raise."""
    try:
        return read_image(path)
    except ValueError as error:
        if str(error).startswith(f"{path}: broken or truncated image"):
            return None
        raise


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_images(tmp_path, suffix):
    path = tmp_path / f"frame.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    expected = read_image(path)
    lengths = range(0, len(whole), 7)
    refused = 0
    for length in lengths:
        path.write_bytes(whole[:length])
        pixels = decode_or_none(path)
        # A file that lacks only its end marker may still hold every pixel.
        assert pixels is None or torch.equal(pixels, expected)
        refused += pixels is None
    assert refused >= len(lengths) - 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_images_never_raise_anything_else(tmp_path, suffix):
    path = tmp_path / f"frame.{suffix}"
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[generator.integers(0, len(whole), 4)] = generator.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        pixels = decode_or_none(path)
        refused += pixels is None
        assert pixels is None or pixels.dtype == torch.uint8
    assert refused > 0


def test_broken_files_in_a_data_set(root):
    frame = root / "data" / "a" / "origin" / "00000005.png"
    mask = root / "data" / "b" / "mask" / "00000000.png"
    frame.write_bytes(b"no image")
    mask.write_bytes(mask.read_bytes()[:60])
    dataset = ClipTestDataset(root, "train", transform=AS_STORED)
    with pytest.raises(ValueError, match=f"{naming(frame)}: broken or truncated image"):
        dataset[5]
    with pytest.raises(ValueError, match=f"{naming(mask)}: broken or truncated mask"):
        dataset[12]
    frame.unlink()
    with pytest.raises(FileNotFoundError, match=naming(frame)):
        dataset[5]


def test_images_become_rgb_and_upright(tmp_path):
    grey = tmp_path / "grey.png"
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(grey)
    assert torch.equal(read_image(grey), torch.arange(6).view(1, 2, 3).expand(3, 2, 3))
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show it rotated by 90 degrees.
    Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)).save(turned, exif=exif)
    assert read_image(turned).shape == (3, 3, 2)


@pytest.mark.parametrize("palette", [False, True])
def test_masks_hold_labels_whatever_their_palette(tmp_path, palette):
    path = tmp_path / "mask.png"
    image = Image.fromarray(np.array([[0, 1, 2], [124, 255, 5]], dtype=np.uint8))
    if palette:
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)
    labels = read_mask(path, label_table("vspw", 124))
    assert labels.tolist() == [[255, 0, 1], [123, 255, 4]]
    assert labels.dtype == torch.uint8


def test_label_outside_the_classes(tmp_path):
    path = tmp_path / "mask.png"
    values = np.ones((4, 5), dtype=np.uint8)
    values[2, 3], values[3, 0] = 5, 4
    Image.fromarray(values).save(path)
    message = (
        f"{naming(path)}: label outside the classes: mask value 4, 5 .first at row 2, column 3"
    )
    with pytest.raises(ValueError, match=message):
        read_mask(path, label_table("vspw", 3))


@pytest.mark.parametrize("mode", ["RGB", "1", "I;16"])
def test_masks_that_are_not_8_bit(tmp_path, mode):
    path = tmp_path / "mask.png"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(ValueError, match=f"{naming(path)}.*8-bit.*'{mode}"):
        read_mask(path, label_table("vspw"))


def test_mask_of_another_size(root):
    mask = root / "data" / "a" / "mask" / "00000002.png"
    Image.new("L", (30, 24)).save(mask)
    with pytest.raises(ValueError, match=f"{naming(mask)}: mask is 30x24.*00000002.png is 32x24"):
        ClipTestDataset(root, "train", transform=AS_STORED)[2]


def test_frames_of_different_sizes(root):
    frame = root / "data" / "a" / "origin" / "00000003.png"
    Image.new("RGB", (64, 24)).save(frame)
    video = find_videos(root, "train")[0]
    with pytest.raises(ValueError, match=f"{naming(frame)}: 64x24.*is 32x24"):
        read_frames(video, (0, 3))


def test_labels_of_a_video_without_masks(root):
    video = find_videos(root, "train", labelled=False)[0]
    with pytest.raises(ValueError, match=f"{naming(video.frames[1])}.*no masks"):
        read_labels(video, 1, label_table("vspw"), torch.zeros(24, 32))


# Classes


def test_vspw_mapping():
    table = label_table("vspw", 124)
    expected = [255, *range(124), *[-1] * 130, 255]
    assert table.tolist() == expected


def test_identity_and_custom_mappings():
    assert label_table("identity", 3).tolist() == [0, 1, 2, *[-1] * 252, 255]
    table = label_table({7: 0, 9: 1, 0: 255}, 2)
    assert [table[value] for value in (0, 7, 9, 1, 255)] == [255, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("mapping", "num_classes", "message"),
    [
        ("cityscapes", 3, "label_mapping must be"),
        ({300: 0}, 3, "mask value 300"),
        ({1: 3}, 3, "sends 1 to 3"),
        ("vspw", 256, "num_classes must be 1..255"),
        ("vspw", 0, "num_classes must be 1..255"),
    ],
)
def test_wrong_mappings(mapping, num_classes, message):
    with pytest.raises(ValueError, match=message):
        label_table(mapping, num_classes)


def test_names_and_colours_of_vspw():
    assert len(VSPW_CLASSES) == len(set(VSPW_CLASSES)) == 124
    assert (VSPW_CLASSES[0], VSPW_CLASSES[60], VSPW_CLASSES[123]) == ("wall", "person", "train")
    table = vspw_classes()
    assert len(table) == len(set(table.colours)) == 124
    assert table.palette().shape == (256, 3)
    assert tuple(table.palette()[60]) == table.colours[60]
    assert (table.palette()[124:] == 0).all()
    assert generated_colours(124)[:50] == generated_colours(50)
    assert len(set(generated_colours(255))) == 255


def test_class_list(root):
    table = read_classes(root / "classes.txt")
    assert table.names == ("sky", "river bank", "road")
    assert table.colours[:2] == ((1, 2, 3), (4, 5, 6))
    assert table.colours[2] == generated_colours(3)[2]
    assert read_classes(root / "classes.txt", "identity").names[0] == "void"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "without gaps"),
        ("1 sky\n3 road\n", "without gaps"),
        ("1 sky\n1 road\n", "line 2: mask value 1 repeats"),
        ("sky 1\n", "line 1: expected"),
        ("1\n", "line 1: expected"),
        ("1 sky 1 2 300\n", "line 1: expected"),
    ],
)
def test_wrong_class_lists(root, content, message):
    path = root / "classes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{naming(path)}.*{message}"):
        ClipTrainDataset(root)


def test_where_the_classes_come_from(root):
    assert choose_classes(root).names == ("sky", "river bank", "road")
    with pytest.raises(ValueError, match=f"{naming(root / 'classes.txt')} names 3 classes"):
        choose_classes(root, 4)
    (root / "classes.txt").unlink()
    assert choose_classes(root).names == VSPW_CLASSES
    assert choose_classes(root, 2).names == ("class_0", "class_1")
    with pytest.raises(ValueError, match="num_classes must be given"):
        choose_classes(root, None, "identity")
    with pytest.raises(FileNotFoundError, match=naming(root / "classes.txt")):
        read_classes(root / "classes.txt")


# Data sets


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
