"""Malformed images and masks."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case
from vss_models.data import label_table, read_image, read_mask

_MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "I;16", "CMYK", "F", "I")
_FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")
_LABELS = 5


def images(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Images of many formats and modes, whole and damaged, and what is no image."""
    while True:
        path, mode, form = _new_file(rng, folder, "jpg"), _pick(rng, _MODES), _pick(rng, _FORMATS)
        content = _encoded(rng, mode, form, 256)
        if content is None:
            continue
        kind = "whole"
        if rng.random() < 0.8:
            kind, content = damaged(content, rng)
        if rng.random() < 0.15:
            kind, content = _odd_png(rng)
        name = f"{mode} {form}, {kind}"
        if rng.random() < 0.03:
            name = _no_file(rng, path)
        else:
            path.write_bytes(content)
        yield Case(name, lambda path=path: _check_image(path), (str(path),))


def masks(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Masks of many formats, modes and labels, whole and damaged, and what is no mask."""
    while True:
        path, mode = _new_file(rng, folder, "png"), _pick(rng, ("L", "P", *_MODES))
        content = _encoded(rng, mode, _pick(rng, ("PNG", "PNG", "PNG", *_FORMATS)), 8)
        if content is None:
            continue
        kind = "whole"
        if rng.random() < 0.6:
            kind, content = damaged(content, rng)
        name = f"mask {mode}, {kind}"
        if rng.random() < 0.03:
            name = _no_file(rng, path)
        else:
            path.write_bytes(content)
        yield Case(name, lambda path=path: _check_mask(path), (str(path),))


def _check_image(path: Path) -> None:
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.dim() == 3
    assert image.shape[0] == 3
    with Image.open(path) as stored:
        if stored.mode not in ("I;16", "I", "I;16B") and not stored.getexif():
            expected = np.asarray(stored.convert("RGB"))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected), "other pixels"


def _check_mask(path: Path) -> None:
    table = label_table("vspw", _LABELS)
    labels = read_mask(path, table)
    with Image.open(path) as stored:
        assert stored.mode in ("L", "P"), f"a mask of mode {stored.mode} was read"
        values = np.asarray(stored)
    assert labels.shape == values.shape, "another shape"
    assert np.array_equal(labels.numpy(), table[values]), "other labels"
    assert (table[values] >= 0).all(), "a label outside the classes was read"


def _new_file(rng: np.random.Generator, folder: Path, suffix: str) -> Path:
    return folder / f"{rng.integers(1 << 60):x}.{suffix}"


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _encoded(rng: np.random.Generator, mode: str, form: str, limit: int) -> bytes | None:
    """A small image of a mode in a format, or None where the format has no such mode."""
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    values = rng.integers(0, limit, (height, width), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 200)
    else:
        picture = Image.fromarray(values).convert(mode)
    file = io.BytesIO()
    try:
        picture.save(file, form)
    except (OSError, ValueError):
        return None
    return file.getvalue()


def _odd_png(rng: np.random.Generator) -> tuple[str, bytes]:
    """A PNG whose header tells an odd size, depth or colour type, with a right checksum."""
    size = [int(rng.choice([0, 1, 7, 70_000, 2**31 - 1, 2**32 - 1])) for _ in range(2)]
    depth, colour = int(rng.choice([0, 1, 3, 8, 16, 255])), int(rng.choice([0, 2, 3, 4, 6, 9]))
    header = struct.pack(">IIBBBBB", *size, depth, colour, *rng.integers(0, 3, 3).tolist())
    pixels = zlib.compress(bytes(100))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return f"header {size} {depth} {colour}", b"\x89PNG\r\n\x1a\n" + body


def _no_file(rng: np.random.Generator, path: Path) -> str:
    kind = _pick(rng, ("pipe", "folder", "loop", "nothing"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    return f"a {kind}"
