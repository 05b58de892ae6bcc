"""Class names, colours and the mapping from mask values to classes."""

from __future__ import annotations

import re

import pytest

from tests.support.vspw_files import write_dataset
from vss_models.data import (
    VSPW_CLASSES,
    ClipTrainDataset,
    choose_classes,
    generated_colours,
    label_table,
    read_classes,
    vspw_classes,
)


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set")


def naming(path) -> str:
    return re.escape(str(path))


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
