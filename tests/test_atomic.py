"""Files appear whole or not at all, whoever writes them and whatever stops the writer."""

from __future__ import annotations

import errno
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.failing_writes import assert_a_failure_changes_nothing
from vss_models import atomic, create_model
from vss_models.atomic import AtomicFile, atomic_write, remove_leftovers
from vss_models.checkpoints.io import write_file
from vss_models.inference.export import export_model
from vss_models.training import EvaluationReport, write_submission
from vss_models.video import VideoWriter
from vss_models.visualize import write_label_png, write_png

PALETTE = np.zeros((256, 3), np.uint8)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


class Stop(BaseException):
    """Such as a KeyboardInterrupt: no ordinary exception."""


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, Stop, OSError])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_neither_litter_nor_half_a_file(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "a.txt"
    if existing:
        path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write_half()
    assert list(tmp_path.iterdir()) == ([path] if existing else [])
    assert not existing or path.read_text() == "old"


def test_a_block_that_writes_nothing_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError, match=r"'.*/a\.txt'"), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_contents_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = atomic.os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: done.append("synced"))
    monkeypatch.setattr(
        atomic.os, "replace", lambda *paths: (done.append("named"), replace(*paths))
    )
    for sync in (True, False):
        with atomic_write(tmp_path / "a.txt", sync=sync) as temporary:
            temporary.write_text("a")
    assert done == ["synced", "named", "named"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    first, second = (AtomicFile(tmp_path / "a.txt") for _ in range(2))
    for number, file in enumerate((first, second)):
        file.temporary.write_text(str(number))
    second.commit()
    first.discard()
    assert (tmp_path / "a.txt").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_errors_name_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/a\.txt cannot be written: .*no folder"):
        AtomicFile(tmp_path / "no" / "a.txt")
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match=r"'.*/a\.txt'$"), atomic_write(tmp_path / "a.txt") as path:
        path.write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_long_names_and_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    with atomic_write(path) as temporary:
        temporary.write_text("a")
    (tmp_path / "plain").write_text("a")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_of_killed_writers_are_removed_by_name(tmp_path: Path) -> None:
    names = ("last.ckpt", "step_1.ckpt", "other.ckpt")
    for name in names:
        AtomicFile(tmp_path / name).temporary.write_text("half")
    (tmp_path / ".step_notes.ckpt.tmp").write_text("somebody's")
    (tmp_path / "step_2.ckpt").write_text("whole")
    remove_leftovers(tmp_path, "last.ckpt")
    remove_leftovers(tmp_path, "step_*.ckpt")
    remove_leftovers(tmp_path / "absent")
    assert sorted(path.name.split(".")[1] for path in tmp_path.glob(".*")) == [
        "other",
        "step_notes",
    ]
    assert (tmp_path / "step_2.ckpt").exists()


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Limits the size of files, which the system reports to a writer like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_for_weights(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    path = tmp_path / "model.pt"
    full_disk(100_000)
    for size in (1_000_000, 24_900):  # noticed while writing, and when the last buffer is written
        with pytest.raises(OSError, match=r"model\.pt") as caught:
            write_file({"weight": torch.zeros(size)}, path)
        assert caught.value.errno == errno.EFBIG
        assert list(tmp_path.iterdir()) == []


def write_report(folder: Path) -> None:
    report = EvaluationReport(0.5, 0.25, 0.75, ("a", "b"), (0.5, math.nan), (1.0, 0.0))
    report.write(folder, overwrite=True)


def write_video(folder: Path) -> None:
    with VideoWriter(folder / "a.mp4", 10, (64, 64)) as writer:
        writer.write(PICTURE)


def write_program(folder: Path) -> None:
    small = {"dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "embed_dim": 16}
    export_model(create_model("segformer_b0", 3, **small).eval(), folder / "a.pt2", (32, 32), False)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "weights": lambda folder: write_file({"weight": torch.zeros(9)}, folder / "a.pt"),
    "picture": lambda folder: write_png(folder / "a.png", PICTURE),
    "labels": lambda folder: write_label_png(folder / "a.png", PICTURE[..., 0], PALETTE),
    "submission": lambda folder: write_submission(
        torch.from_numpy(PICTURE[..., 0]).clamp(max=250), folder / "a.png"
    ),
    "report": write_report,
    "video": write_video,
    "exported program": write_program,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_leaves_the_folder_as_it_was_when_it_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_failure_changes_nothing(WRITERS[name], tmp_path, monkeypatch)


def test_pictures_are_png_under_any_name(tmp_path: Path) -> None:
    write_png(tmp_path / "a", PICTURE)
    with Image.open(tmp_path / "a") as picture:
        assert picture.format == "PNG"
