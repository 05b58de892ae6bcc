"""Images and masks that other tools read differently, and files that are no images at all."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.support.vspw_files import write_dataset
from vss_models.data import find_videos, label_table, read_classes, read_image, read_mask
from vss_models.data.vspw import read_labels, read_split

ROTATED_BY_180 = 3
CLOCKWISE = 6


def save(path: Path, values: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(values).save(path, exif=exif)
    return path


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 127, 257, 32768, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / "grey.png", values))
    assert image[0].tolist() == [[0, 0, 1, 128, 255]]
    assert torch.equal(image[1], image[0])
    assert torch.equal(image[2], image[0])


def test_grey_of_more_than_16_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    Image.fromarray(np.array([[1, 70_000]], dtype=np.int32)).save(path, format="TIFF")
    with pytest.raises(ValueError, match=r"depth.png.*16-bit, 0\.\.65535, got 1\.\.70000"):
        read_image(path)


def test_a_mask_is_rotated_as_its_exif_data_say(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = save(tmp_path / "mask.png", values, CLOCKWISE)
    labels = read_mask(path, label_table("identity", 6))
    assert labels.tolist() == np.rot90(values, -1).tolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


def rotate_frame(root: Path, orientation: int) -> Path:
    frame = root / "data" / "a" / "origin" / "00000002.png"
    return save(frame, np.asarray(Image.open(frame)), orientation)


def test_a_rotated_frame_beside_an_upright_mask_is_refused_by_size(root: Path) -> None:
    frame = rotate_frame(root, CLOCKWISE)
    video = find_videos(root, "train")[0]
    with pytest.raises(ValueError, match=r"rotated by its EXIF data, the mask is not"):
        read_labels(video, 2, label_table("vspw", 3), read_image(frame))


def test_a_rotated_frame_beside_a_mask_of_its_size_is_reported_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = rotate_frame(root, ROTATED_BY_180)
    video = find_videos(root, "train")[0]
    table = label_table("vspw", 3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read_labels(video, 2, table, read_image(frame))
        read_labels(video, 3, table, read_image(video.frames[3]))
    assert [record.getMessage() for record in caplog.records] == [
        f"{frame}: the frame is rotated or mirrored by its EXIF data, its mask {video.masks[2]} "
        "is not; masks must show what viewers show"
    ]


@pytest.mark.parametrize("read", [read_image, lambda path: read_mask(path, label_table("vspw"))])
def test_a_named_pipe_is_refused_at_once(tmp_path: Path, read) -> None:
    pipe = tmp_path / "0.png"
    os.mkfifo(pipe)
    with pytest.raises(
        ValueError, match=f"{re.escape(str(pipe))}: this (image|mask) is not a file"
    ):
        read(pipe)


def test_text_that_is_not_utf_8_is_named(root: Path) -> None:
    (root / "train.txt").write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train.txt: not a text file in UTF-8 .* at byte 4"):
        read_split(root, "train")
    (root / "classes.txt").write_bytes(b"1 caf\xe9\n")
    with pytest.raises(ValueError, match=r"classes.txt: not a text file in UTF-8"):
        read_classes(root / "classes.txt")
