"""The VSPW layout: what is read, and for all that can be wrong an error that names the file."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.vspw_files import write_dataset
from vss_models.data import (
    ClipTestDataset,
    ClipTrainDataset,
    EvaluationTransform,
    find_videos,
    label_table,
    list_frames,
    read_image,
    read_mask,
)
from vss_models.data.vspw import read_frames, read_labels, read_split

AS_STORED = EvaluationTransform(scale=None, divisor=1)


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
    """Returns the pixels, or None for the one error that a broken file may raise."""
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
