"""A labelled video data set made from nothing, in the VSPW layout, for demonstrations and tests."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from vss_models.atomic import naming_file
from vss_models.data.classes import ClassTable
from vss_models.data.synthetic_video import SyntheticVideo

DISTURBANCES_FILE = "disturbances.csv"
"""Which frames of a synthetic data set are disturbed, and how."""

SYNTHETIC_CLASSES = ClassTable(
    names=("sky", "building", "tree", "grass", "water", "road", "car", "person", "pole"),
    colours=(
        (112, 172, 222),
        (164, 108, 88),
        (36, 104, 48),
        (140, 190, 80),
        (38, 92, 170),
        (118, 112, 122),
        (228, 52, 60),
        (250, 170, 40),
        (172, 60, 190),
    ),
)
"""The classes of the synthetic data set; their mask values are one more, 0 is void."""


MARK = ".vss-synthetic"
"""A file that tells a synthetic data set, which may be replaced, from anybody else's."""

_OWN_FILES = {MARK, DISTURBANCES_FILE, "classes.txt", "data", "train.txt", "val.txt"}
_OWN_VIDEO = re.compile(r"(train|val)_\d{4,}")


def make_synthetic_dataset(
    root: Path | str,
    *,
    num_train: int = 20,
    num_val: int = 6,
    frames: int = 30,
    size: tuple[int, int] = (96, 160),
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Make street videos with labels for every frame.

    Buildings, trees, grass, water and road pass by a panning camera; cars and persons move in front
    of them, hide each other, enter and leave; the light changes. About half of the frames are
    noisy, blurred, badly exposed, glared or partly lost, each on its own, so a model gains from
    looking at neighbours; ``disturbances.csv`` says which.
    A video depends on `seed`, its split and its number alone, so more videos or frames leave the
    earlier ones as they are.

    The data set appears whole or not at all: it is made in a folder beside `root` and then renamed.

    Args:
        root: Folder to make.
        num_train: Number of training videos.
        num_val: Number of validation videos.
        frames: Frames of each video.
        size: (height, width) of the frames, at least 32 each.
        seed: Seed of everything.
        overwrite: Whether an existing data set at `root` may be replaced.

    Returns:
        `root` as a path.

    Raises:
        ValueError: A number is out of range.
        FileExistsError: `root` is not empty and `overwrite` is not set, or what is there is not
            all of a synthetic data set.
        OSError: The disk is full, for example; the error names the video.
    """
    root = Path(root)
    for name, number in (("num_train", num_train), ("num_val", num_val), ("frames", frames)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if min(size) < 32:
        raise ValueError(f"size must be (height, width) of at least 32 each, got {size}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    _check_target(root, overwrite)

    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    replaced = root.with_name(f".{root.name}.replaced-{os.getpid()}")
    try:
        partial.mkdir()
        disturbances = ["video,frame,disturbance"]
        for split, (name, count) in enumerate((("train", num_train), ("val", num_val))):
            videos = [f"{name}_{number:04d}" for number in range(count)]
            happened = _write_videos(root, partial, videos, frames, size, (seed, split))
            disturbances += [
                f"{video},{_stem(frame)},{disturbance}"
                for video, kinds in zip(videos, happened, strict=True)
                for frame, disturbance in enumerate(kinds)
            ]
            (partial / f"{name}.txt").write_text("".join(f"{video}\n" for video in videos))
        (partial / DISTURBANCES_FILE).write_text("\n".join(disturbances) + "\n")
        _write_classes(partial / "classes.txt")
        (partial / MARK).touch()
        if root.is_dir() and any(root.iterdir()):
            root.rename(replaced)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.is_dir() and not root.exists():
            replaced.rename(root)
    shutil.rmtree(replaced, ignore_errors=True)
    return root


def _check_target(root: Path, overwrite: bool) -> None:
    """Refuses to replace anything that the caller may want to keep."""
    if not root.exists() and not root.is_symlink():
        return
    if root.is_symlink() or not root.is_dir():
        raise FileExistsError(f"{root} exists and is not a folder; choose another place")
    if not any(root.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{root} is not empty; choose another place or set overwrite to replace it"
        )
    if not (root / MARK).is_file():
        raise FileExistsError(
            f"{root} is not a synthetic data set (it has no file {MARK}), so it is not replaced; "
            "remove it yourself or choose another place"
        )
    foreign = [path for path in root.iterdir() if path.name not in _OWN_FILES]
    foreign += [path for path in (root / "data").glob("*") if not _OWN_VIDEO.fullmatch(path.name)]
    if foreign:
        raise FileExistsError(
            f"{min(foreign)} does not belong to the synthetic data set, which is not replaced for "
            "its sake; move it, or choose another place"
        )


def read_disturbances(root: Path | str) -> dict[tuple[str, str], str]:
    """Reads what happened to each frame of a synthetic data set.

    Args:
        root: Folder of the data set.

    Returns:
        One of :data:`vss_models.data.synthetic_video.DISTURBANCES`, or ``"none"``, by the names of
        the video and of the frame.

    Raises:
        FileNotFoundError: If the data set has no ``disturbances.csv``.
    """
    with open(Path(root) / DISTURBANCES_FILE, newline="", encoding="utf-8") as file:
        return {(row["video"], row["frame"]): row["disturbance"] for row in csv.DictReader(file)}


def _stem(frame: int) -> str:
    return f"{frame:08d}"


def _write_videos(
    root: Path,
    partial: Path,
    videos: Sequence[str],
    frames: int,
    size: tuple[int, int],
    seed: tuple[int, ...],
) -> list[list[str]]:
    """Writes videos, as many at once as there are cores; returns the disturbances of each.

    NumPy and Pillow leave Python's lock to others while they paint and compress.
    """

    def write(number: int) -> list[str]:
        with naming_file(root / "data" / videos[number]):
            folder = partial / "data" / videos[number]
            return _write_video(folder, frames, size, (*seed, number))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(write, range(len(videos))))


def _write_video(
    folder: Path, frames: int, size: tuple[int, int], seed: tuple[int, ...]
) -> list[str]:
    """Writes one video's frames (JPEG) and masks (palette PNG); returns their disturbances."""
    (folder / "origin").mkdir(parents=True)
    (folder / "mask").mkdir()
    palette = [0, 0, 0, *(part for colour in SYNTHETIC_CLASSES.colours for part in colour)]
    video = SyntheticVideo(size, seed)
    for number in range(frames):
        image, labels = video.frame(number)
        Image.fromarray(image).save(folder / "origin" / f"{_stem(number)}.jpg", quality=92)
        mask = Image.fromarray(labels)
        mask.putpalette(palette)
        mask.save(folder / "mask" / f"{_stem(number)}.png")
    return [video.disturbance(number) for number in range(frames)]


def _write_classes(path: Path) -> None:
    rows = ["0 void 0 0 0"]
    for value, (name, colour) in enumerate(
        zip(SYNTHETIC_CLASSES.names, SYNTHETIC_CLASSES.colours, strict=True), 1
    ):
        rows.append(f"{value} {name} {' '.join(map(str, colour))}")
    path.write_text("\n".join(rows) + "\n")
