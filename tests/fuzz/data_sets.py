"""Malformed data sets in the VSPW layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case
from tests.support.vspw_files import write_dataset
from vss_models.data import ClipTestDataset, EvaluationTransform, choose_classes

_AS_STORED = EvaluationTransform(scale=None, divisor=1)
_LISTS = (
    b"",
    b"\n\n",
    b"a\na\n",
    b"../a\n",
    b"/etc\n",
    b"a/origin\n",
    b"b \r\na\r\n",
    b"\xff\xfe a\n",
    b"a\x00b\n",
    b"missing\n",
    "ä\n".encode(),
    b"x" * 5000 + b"\n",
    b".\n",
    b"\\a\n",
)
_CLASSES = (
    b"",
    b"1 sky\n1 sea\n",
    b"1 sky\n3 sea\n",
    b"x sky\n",
    b"1\n",
    b"1 sky 1 2 999\n2 river 1 2 3\n3 road 1 2 3\n",
    b"300 sky\n",
    b"-1 sky\n",
    b"\xff\n",
    b"0 void\n",
    b"1 " + b"n" * 20_000 + b"\n2 a\n3 b\n",
    b"1 sky 0.5 0 0\n2 b\n3 c\n",
    "٣ sky\n".encode(),
)


def data_sets(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Data sets of which one part is missing, damaged, of another kind, or of another size."""
    ways = (
        _change_list,
        _change_classes,
        _change_image,
        _change_kind,
        _remove_one,
        _resize,
        _rename,
    )
    whole = write_dataset(folder / "whole", lengths=(12, 11))
    while True:
        root = folder / f"{rng.integers(1 << 60):x}"
        shutil.copytree(whole, root)
        way = ways[int(rng.integers(len(ways)))]
        name = f"{way.__name__.strip('_')}: {way(root, rng)}"
        yield Case(name, lambda root=root: _read_all(root), (str(root),))


def _read_all(root: Path) -> None:
    """Reads every item, as an evaluation does; each must fit its labels."""
    classes = choose_classes(root, 3, "vspw")
    assert len(classes) == 3
    dataset = ClipTestDataset(root, "train", offsets=(-3, -2, -1), transform=_AS_STORED)
    for number in range(len(dataset)):
        item = dataset[number]
        assert item["labels"].shape[-2:] == item["clip"].shape[-2:]
        labels = item["labels"]
        assert ((labels < 3) | (labels == 255)).all()
    shutil.rmtree(root)


def _some_file(root: Path, rng: np.random.Generator) -> Path:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return files[int(rng.integers(len(files)))]


def _change_list(root: Path, rng: np.random.Generator) -> str:
    content = _LISTS[int(rng.integers(len(_LISTS)))]
    (root / "train.txt").write_bytes(content)
    return repr(content[:40])


def _change_classes(root: Path, rng: np.random.Generator) -> str:
    content = _CLASSES[int(rng.integers(len(_CLASSES)))]
    (root / "classes.txt").write_bytes(content)
    return repr(content[:40])


def _change_image(root: Path, rng: np.random.Generator) -> str:
    images = sorted(root.rglob("*.png"))
    path = images[int(rng.integers(len(images)))]
    kind, content = damaged(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"{path.relative_to(root)} {kind}"


def _change_kind(root: Path, rng: np.random.Generator) -> str:
    path = _some_file(root, rng)
    path.unlink()
    makers: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "loop": lambda place: place.symlink_to(place.name),
        "dead link": lambda place: place.symlink_to("nowhere"),
    }
    kind = list(makers)[int(rng.integers(len(makers)))]
    makers[kind](path)
    return f"{path.relative_to(root)} is a {kind}"


def _remove_one(root: Path, rng: np.random.Generator) -> str:
    everything = sorted(root.rglob("*"))
    path = everything[int(rng.integers(len(everything)))]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return str(path.relative_to(root))


def _resize(root: Path, rng: np.random.Generator) -> str:
    images = sorted(root.rglob("*.png"))
    path = images[int(rng.integers(len(images)))]
    size = tuple(int(side) for side in rng.integers(1, 60, 2))
    Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)
    return f"{path.relative_to(root)} {size}"


def _rename(root: Path, rng: np.random.Generator) -> str:
    path = _some_file(root, rng)
    names = ("Ä.png", "a b.jpg", ".hidden.png", "0.PNG", "0.bmp", "9" * 200 + ".png", "\udcff.png")
    name = names[int(rng.integers(len(names)))]
    path.rename(path.with_name(name))
    return f"{path.relative_to(root)} becomes {name!r}"
