"""Labels as pictures: overlays, legends, contact sheets and palette PNG files."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vss_models.atomic import atomic_write

BACKGROUND = (24, 24, 27)
TEXT = (235, 235, 235)
PAPER = (255, 255, 255)
INK = (20, 20, 20)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: np.ndarray,
    opacity: float = 0.5,
    ignore_index: int | None = 255,
) -> np.ndarray:
    """Blends an image with the colours of its labels.

    Args:
        image: uint8 RGB (H, W, 3).
        labels: (H, W) integer labels.
        palette: uint8 (P, 3), the colour of each label.
        opacity: Weight of the colour, 0 (the image) to 1 (the colours).
        ignore_index: Pixels of this label show the image alone; None for no such label.

    Returns:
        uint8 RGB (H, W, 3), a new array.

    Raises:
        TypeError: If an array has the wrong type.
        ValueError: If shapes do not fit, a label has no colour, or `opacity` is out of range.
    """
    _check_image("image", image)
    _check_labels(labels)
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels must have the image's size {image.shape[:2]}, got {labels.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0..1, got {opacity}")
    shown = None if ignore_index is None else labels != ignore_index
    colours = _check_palette(palette).astype(np.uint16)
    # In steps of 1/256, so that 16 bits hold the sum.
    weight = round(opacity * 256)
    premixed = colours * weight + 128
    picked = labels if shown is None else np.where(shown, labels, 0)
    _check_range(picked, len(colours))
    mixed = image * np.uint16(256 - weight)
    mixed += premixed.take(picked, axis=0, mode="clip")
    result = (mixed >> 8).astype(np.uint8)
    if shown is not None and not shown.all():
        result[~shown] = image[~shown]
    return result


def colour_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Paints labels (H, W) in the colours of a palette (P, 3): uint8 RGB (H, W, 3).

    Raises:
        TypeError: If an array has the wrong type.
        ValueError: If a shape is wrong or a label has no colour.
    """
    _check_labels(labels)
    colours = _check_palette(palette)
    _check_range(labels, len(colours))
    return colours[labels]


class Legend:
    """A panel to stand beside frames, with the names and colours of the classes in each.

    Its size stays the same from frame to frame. Classes are listed in label order, so that entries
    move little; where there is no room for all, the largest ones are listed.

    Args:
        class_names: One name per class; underscores are shown as spaces.
        palette: uint8 (P, 3), the colour of each label.
        height: Height of the panel, in pixels.
        max_width: Longest permitted width, in pixels; longer names end in an ellipsis.
        min_fraction: A class with a smaller fraction of the frame is not listed.

    Attributes:
        width: Width of the panel, in pixels; always even.

    Raises:
        ValueError: If there are more classes than colours, or a size is not positive.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        palette: np.ndarray,
        height: int,
        max_width: int = 260,
        min_fraction: float = 0.001,
    ) -> None:
        if len(class_names) > len(palette):
            raise ValueError(
                f"palette must have a colour for each of the {len(class_names)} classes, got "
                f"{len(palette)}"
            )
        if height < 1 or max_width < 1:
            raise ValueError(f"height and max_width must be positive, got {height}, {max_width}")
        self._palette = _check_palette(palette)
        self._height = height
        self._min_fraction = min_fraction
        text_size = min(max(height // 28, 10), 24)
        self._font = _font(text_size)
        self._line = text_size + text_size // 3
        self._margin = text_size // 2
        taken = 3 * self._margin + text_size
        self._names = [
            _shorten(name.replace("_", " "), self._font, max(max_width - taken, text_size))
            for name in class_names
        ]
        longest = max((self._font.getlength(name) for name in self._names), default=0)
        width = taken + int(max(longest, self._font.getlength("+ 99 more"))) + 1
        self.width = width + width % 2
        self._room = max((height - self._margin) // self._line, 1)
        self._drawn: dict[tuple[int, ...], np.ndarray] = {}

    def draw(self, labels: np.ndarray) -> np.ndarray:
        """Draws the panel for a frame's labels (H, W): uint8 RGB (height, width, 3)."""
        _check_labels(labels)
        counts = np.bincount(labels.ravel(), minlength=len(self._names))[: len(self._names)]
        threshold = max(1, self._min_fraction * labels.size)
        present = [int(label) for label in np.flatnonzero(counts >= threshold)]
        hidden = 0
        if len(present) > self._room:
            by_size = sorted(present, key=lambda label: -counts[label])
            listed = by_size[: max(self._room - 1, 1)]
            hidden = len(present) - len(listed)
            present = sorted(listed)
        return self._panel(present, hidden).copy()

    def _panel(self, present: list[int], hidden: int) -> np.ndarray:
        key = (hidden, *present)
        if key not in self._drawn:
            if len(self._drawn) >= 64:
                self._drawn.clear()
            panel = Image.new("RGB", (self.width, self._height), BACKGROUND)
            pen = ImageDraw.Draw(panel)
            top = self._margin
            for label in present:
                self._entry(pen, top, label)
                top += self._line
            if hidden and len(present) < self._room:
                self._text(pen, top, f"+ {hidden} more")
            self._drawn[key] = np.asarray(panel)
        return self._drawn[key]

    def _entry(self, pen: ImageDraw.ImageDraw, top: int, label: int) -> None:
        side = int(self._font.size)
        left = self._margin
        red, green, blue = (int(value) for value in self._palette[label])
        pen.rectangle((left, top, left + side - 1, top + side - 1), fill=(red, green, blue))
        self._text(pen, top, self._names[label])

    def _text(self, pen: ImageDraw.ImageDraw, top: int, text: str) -> None:
        side = int(self._font.size)
        middle = (2 * self._margin + side, top + side // 2)
        pen.text(middle, text, fill=TEXT, font=self._font, anchor="lm")


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    cell_height: int = 180,
) -> np.ndarray:
    """Arranges images in a grid with titles.

    Args:
        rows: Rows of uint8 RGB images (H, W, 3); sizes may differ, each is scaled to `cell_height`.
        column_titles: Titles over the columns, or none.
        row_titles: Titles above the rows, or none.
        cell_height: Height of every image in the grid, in pixels.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        TypeError: If an image is no uint8 array.
        ValueError: If there is no image, titles don't match the grid, or a shape is wrong.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("rows must hold at least one image")
    for name, titles, expected in (
        ("column_titles", column_titles, columns),
        ("row_titles", row_titles, len(rows)),
    ):
        if titles and len(titles) != expected:
            raise ValueError(f"{name} must have {expected} entries or none, got {len(titles)}")
    cells = [[_scaled(image, cell_height) for image in row] for row in rows]
    widths = [
        max(row[column].width for row in cells if column < len(row)) for column in range(columns)
    ]
    font = _font(max(cell_height // 12, 10))
    gap, text = max(cell_height // 30, 2), int(font.size * 1.6)
    row_step = cell_height + gap + (text if row_titles else 0)
    top = gap + (text if column_titles else 0)
    size = (gap + sum(width + gap for width in widths), top + row_step * len(rows))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    lefts = [gap + sum(widths[:column]) + gap * column for column in range(columns)]
    for title, left, width in zip(column_titles, lefts, widths, strict=False):
        title = _shorten(title, font, width)
        pen.text((left + width / 2, gap + text / 2), title, fill=INK, font=font, anchor="mm")
    for number, row in enumerate(cells):
        row_top = top + row_step * number
        if row_titles:
            pen.text((gap, row_top), row_titles[number], fill=INK, font=font)
            row_top += text
        for cell, left in zip(row, lefts, strict=False):
            sheet.paste(cell, (left, row_top))
    return np.asarray(sheet)


def write_label_png(path: str | os.PathLike[str], labels: np.ndarray, palette: np.ndarray) -> None:
    """Writes labels as an 8-bit palette PNG: the pixels are the labels, viewers show the colours.

    The file appears whole or not at all.

    Args:
        path: File to write.
        labels: (H, W) integer labels, 0..255.
        palette: uint8 (P, 3), P at most 256; missing colours are black.

    Raises:
        TypeError: If an array has the wrong type.
        ValueError: If a label is not 0..255 or a shape is wrong.
    """
    _check_labels(labels)
    _check_range(labels, 256)
    colours = _check_palette(palette)
    if len(colours) > 256:
        raise ValueError(f"palette must have at most 256 colours for a PNG, got {len(colours)}")
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(np.vstack([colours, np.zeros((256 - len(colours), 3), np.uint8)]).tobytes())
    _save(picture, path)


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes uint8 RGB (H, W, 3) as a PNG file, which appears whole or not at all."""
    _check_image("image", image)
    _save(Image.fromarray(image), path)


def _save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    # One a frame: waiting for the disk each time would cost more than it protects.
    with atomic_write(path, sync=False) as temporary:
        picture.save(temporary, format="PNG")


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "this Pillow was built without FreeType and cannot draw text of any size"
        )
    return font


def _scaled(image: np.ndarray, height: int) -> Image.Image:
    _check_image("rows", image)
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    # Small images are shown with their pixels, not blurred.
    method = Image.Resampling.LANCZOS if height < image.shape[0] else Image.Resampling.NEAREST
    return Image.fromarray(image).resize((width, height), method)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    # No letter is much narrower than a pixel: a text of any length is measured once.
    start = text[: 4 * int(width) + 4]
    if start == text and font.getlength(text) <= width:
        return text
    length = bisect.bisect_right(
        range(1, len(start) + 1), width, key=lambda count: font.getlength(start[:count] + "…")
    )
    return start[:length].rstrip() + "…"


def _check_image(name: str, image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"{name} must be a uint8 array, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{name} must be RGB (H, W, 3) and not empty, got {image.shape}")


def _check_labels(labels: np.ndarray) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"labels must be an integer array, got {kind}")
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"labels must be (H, W) and not empty, got {labels.shape}")


def _check_palette(palette: np.ndarray) -> np.ndarray:
    if not isinstance(palette, np.ndarray) or palette.dtype != np.uint8:
        raise TypeError("palette must be a uint8 array (P, 3)")
    if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) == 0:
        raise ValueError(f"palette must be (P, 3), got {palette.shape}")
    return palette


def _check_range(labels: np.ndarray, limit: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= limit:
        raise ValueError(f"labels must lie in 0..{limit - 1}, got {low if low < 0 else high}")


__all__ = [
    "Legend",
    "colour_labels",
    "contact_sheet",
    "overlay",
    "write_label_png",
    "write_png",
]
