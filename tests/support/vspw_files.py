"""Small data sets in the VSPW layout, written for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_video(
    root: Path, name: str, num_frames: int, size: tuple[int, int] = (24, 32), labels: int = 3
) -> None:
    """Writes a video whose frames show their number in red and whose masks hold 0..labels.

    PNG frames keep the number exactly: frame i is filled with red 10 + i.
    """
    origin, mask = root / "data" / name / "origin", root / "data" / name / "mask"
    origin.mkdir(parents=True)
    mask.mkdir()
    generator = np.random.default_rng(num_frames)
    for number in range(num_frames):
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        image[..., 0] = 10 + number
        Image.fromarray(image).save(origin / f"{number:08d}.png")
        values = generator.integers(0, labels + 1, size, dtype=np.uint8)
        Image.fromarray(values).save(mask / f"{number:08d}.png")


def write_dataset(root: Path, lengths: Sequence[int] = (12, 11), split: str = "train") -> Path:
    """Writes videos ``a``, ``b``, ... with these lengths and three classes, and their list."""
    names = [chr(ord("a") + number) for number in range(len(lengths))]
    for name, length in zip(names, lengths, strict=True):
        write_video(root, name, length)
    (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("0 void\n1 sky 1 2 3\n2 river bank 4 5 6\n3 road\n")
    return root
