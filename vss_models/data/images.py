"""Pixels of frames and masks on disk."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# What Pillow raises on damaged files, depending on format and on where the damage is.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path) -> torch.Tensor:
    """Decodes an image, upright as its camera meant it.

    16-bit grey becomes 8-bit grey by scaling, 65535 being white.

    Args:
        path: The image file.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, damaged, no image or no regular file; the message names it.
    """
    with _decoding(path, "image") as image:
        # A copy: Pillow hands out read-only memory, which tensors must not share.
        pixels = np.array(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(path: Path, table: np.ndarray) -> torch.Tensor:
    """Decodes a mask and maps its values to classes.

    A mask that its EXIF data rotate or mirror is rotated and mirrored, as frames are.

    Args:
        path: An 8-bit grey or palette PNG (the palette's colours do not matter).
        table: Class number of each of the 256 values, -1 where a value is not allowed, as from
            :func:`vss_models.data.classes.label_table`.

    Returns:
        (H, W) uint8 class numbers, 255 where ignored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, not 8-bit, or holds a value outside the classes; the message
            names the file.
    """
    with _decoding(path, "mask") as image:
        mode = image.mode
        values = np.array(ImageOps.exif_transpose(image))
    if mode not in ("L", "P"):
        raise ValueError(
            f"{path}: a mask must be an 8-bit grey or palette PNG with one label per pixel, "
            f"got image mode {mode!r}"
        )
    labels = table[values]
    outside = labels < 0
    if outside.any():
        row, column = np.argwhere(outside)[0]
        listed = ", ".join(str(value) for value in np.unique(values[outside])[:8])
        raise ValueError(
            f"{path}: label outside the classes: mask value {listed} (first at row {row}, "
            f"column {column}); check num_classes and label_mapping"
        )
    return torch.from_numpy(labels.astype(np.uint8))


def exif_orientation(path: Path) -> int:
    """Reads how a camera held an image: 1 is upright, 2 to 8 rotate or mirror it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, no image or no regular file; the message names it.
    """
    with _decoding(path, "image") as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[Image.Image]:
    """Opens an image; whatever Pillow raises in the context names the file."""
    if path.exists() and not path.is_file():
        # Opening a named pipe would wait for ever for its other end.
        raise ValueError(f"{path}: this {kind} is not a file but a folder, pipe or device")
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such {kind}") from error
    except _DECODE_ERRORS as error:
        raise ValueError(f"{path}: broken or truncated {kind} ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey, which Pillow would clip; some of its versions give it 32 bits."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"grey values must be 16-bit, 0..65535, got {low}..{high}")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


__all__ = ["IMAGE_SUFFIXES", "exif_orientation", "read_image", "read_mask"]
