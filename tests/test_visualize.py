"""Overlays, legends, contact sheets and palette files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vss_models import visualize
from vss_models.visualize import (
    BACKGROUND,
    Legend,
    colour_labels,
    contact_sheet,
    overlay,
    write_label_png,
    write_png,
)

PALETTE = np.array([[200, 10, 30], [0, 255, 0], [7, 90, 250], [128, 128, 0]], np.uint8)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (17, 23, 3)).astype(np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.random.default_rng(1).integers(0, 4, (17, 23)).astype(np.uint8)
    labels[:5, :5] = 255
    return labels


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_overlay_blends(
    image: np.ndarray, labels: np.ndarray, opacity: float, dtype: type[np.integer]
) -> None:
    before = image.copy()
    result = overlay(image, labels.astype(dtype), PALETTE, opacity)
    for row in range(17):
        for column in range(23):
            pixel = image[row, column].astype(float)
            if labels[row, column] != 255:
                pixel = (1 - opacity) * pixel + opacity * PALETTE[labels[row, column]]
            assert np.abs(result[row, column] - pixel).max() <= 0.5
    assert result.dtype == np.uint8
    assert np.array_equal(image, before)


def test_full_palette_may_colour_the_void(image: np.ndarray, labels: np.ndarray) -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = PALETTE
    palette[255] = (9, 8, 7)
    result = overlay(image, labels, palette, 1.0, ignore_index=None)
    assert np.array_equal(result, colour_labels(labels, palette))
    assert tuple(result[0, 0]) == (9, 8, 7)


def test_overlay_names_bad_input(image: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image's size \(17, 23\), got \(16, 23\)"):
        overlay(image, labels[1:], PALETTE)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3"):
        overlay(image, labels, PALETTE[:3])
    with pytest.raises(ValueError, match="opacity must lie"):
        overlay(image, labels, PALETTE, 1.5)
    with pytest.raises(TypeError, match="image must be a uint8 array, got float64"):
        overlay(image / 255, labels, PALETTE)
    with pytest.raises(TypeError, match="labels must be an integer array"):
        overlay(image, labels.astype(float), PALETTE)
    with pytest.raises(ValueError, match=r"palette must be \(P, 3\)"):
        overlay(image, labels, PALETTE[:, :2])


def swatches(panel: np.ndarray) -> set[tuple[int, ...]]:
    """Palette colours that fill at least a few pixels of a panel."""
    found = {tuple(colour) for colour in PALETTE.tolist()}
    return {colour for colour in found if (panel == colour).all(axis=-1).sum() > 20}


def test_legend_lists_the_classes_present() -> None:
    legend = Legend(("road", "grass_or_tree", "sky", "person"), PALETTE, height=120)
    labels = np.full((60, 80), 2, np.uint8)
    labels[:10] = 0
    labels[10, :3] = 3  # fewer pixels than are listed
    labels[11:14] = 255
    panel = legend.draw(labels)
    assert panel.shape == (120, legend.width, 3)
    assert swatches(panel) == {tuple(PALETTE[0]), tuple(PALETTE[2])}
    # In label order, one under the other.
    tops = [np.argwhere((panel == PALETTE[k]).all(axis=-1))[:, 0].min() for k in (0, 2)]
    assert tops[0] < tops[1]
    # There is text beside the swatches.
    assert (panel[:, legend.width // 3 :] != BACKGROUND).any()
    panel[:] = 0
    assert legend.draw(labels).any()


def test_legend_keeps_the_largest_where_room_is_short() -> None:
    legend = Legend(("a", "b", "c", "d"), PALETTE, height=45)
    labels = np.zeros((40, 40), np.uint8)
    labels[:8], labels[8:13], labels[13:30] = 1, 2, 3
    assert swatches(legend.draw(labels)) == {tuple(PALETTE[3]), tuple(PALETTE[0])}
    assert legend.draw(labels).shape == legend.draw(labels[:1]).shape


def test_legend_says_how_many_classes_it_leaves_out() -> None:
    legend = Legend(("a", "b", "c", "d"), PALETTE, height=45)
    labels = np.zeros((40, 40), np.uint8)
    labels[:8], labels[8:13], labels[13:30] = 1, 2, 3  # all four; two are listed
    without_small = np.where(np.isin(labels, (1, 2)), 3, labels).astype(np.uint8)  # just those two
    panel, complete = legend.draw(labels), legend.draw(without_small)
    assert swatches(panel) == swatches(complete)
    added = np.argwhere((panel != complete).any(axis=-1))
    last_swatch = np.argwhere((panel == PALETTE[3]).all(axis=-1))[:, 0].max()
    assert len(added) > 0
    assert added[:, 0].min() > last_swatch  # a line of its own below the entries


def test_legend_of_a_frame_without_any_class_is_empty() -> None:
    legend = Legend(("a", "b", "c", "d"), PALETTE, height=45)
    panel = legend.draw(np.full((8, 8), 255, np.uint8))
    assert panel.shape == (45, legend.width, 3)
    assert (panel == BACKGROUND).all()


def test_legend_width_is_bounded_and_even() -> None:
    names = ["x" * 500, "y", "z", "w"]
    for height in (20, 300, 2000):
        legend = Legend(names, PALETTE, height, max_width=200)
        assert legend.width <= 202
        assert legend.width % 2 == 0
    with pytest.raises(ValueError, match="colour for each of the 5 classes, got 4"):
        Legend([*names, "v"], PALETTE, 100)


def test_contact_sheet_places_every_image() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [
        np.full((30, 40 + 20 * number, 3), colour, np.uint8)
        for number, colour in enumerate(colours)
    ]
    sheet = contact_sheet([images[:2], images[2:]], ("first", "second"), ("top", "bottom"), 60)
    for colour, image in zip(colours, images, strict=True):
        where = np.argwhere((sheet == colour).all(axis=-1))
        assert len(where) == 60 * image.shape[1] * 2
        assert tuple(np.ptp(where, axis=0) + 1) == (60, image.shape[1] * 2)
    with pytest.raises(ValueError, match="column_titles must have 2 entries or none, got 1"):
        contact_sheet([images[:2]], ("first",))
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


def test_label_png_holds_labels_and_colours(tmp_path: Path, labels: np.ndarray) -> None:
    path = tmp_path / "labels.png"
    write_label_png(path, labels.astype(np.int64), PALETTE)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), labels)
        shown = np.array(picture.convert("RGB"))
    assert np.array_equal(shown[labels < 4], PALETTE[labels[labels < 4]])
    assert not shown[labels == 255].any()
    with pytest.raises(ValueError, match=r"0\.\.255, got 300"):
        write_label_png(tmp_path / "other.png", np.full((2, 2), 300), PALETTE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.png"]


def test_png_is_the_image(tmp_path: Path, image: np.ndarray) -> None:
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), image)
    with pytest.raises(FileNotFoundError):
        write_png(tmp_path / "missing" / "a.png", image)


class CountingFont:
    """A font of letters 10 pixels wide that counts what it is asked to measure."""

    measured = 0

    def getlength(self, text: str) -> float:
        self.measured += len(text)
        return 10.0 * len(text)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("tree", "tree"),
        ("building", "building"),
        ("buildings", "buildin…"),
        ("a" * 1_000_000, "aaaaaaa…"),
        ("", ""),
    ],
)
def test_names_of_any_length_are_shortened_at_once(text: str, short: str) -> None:
    font = CountingFont()
    assert visualize._shorten(text, font, 80) == short
    assert font.measured < 5000


def test_no_room_for_a_name_leaves_its_ellipsis() -> None:
    assert visualize._shorten("tree", CountingFont(), 5) == "…"
