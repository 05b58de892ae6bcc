"""A run's own folder: continuing in it, refusing others, leaving it alone where nothing starts."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import STEPS, Crash, contents, train
from tests.support.tiny_training import (
    assert_same_state,
)
from vss_models import CheckpointError, load_model
from vss_models.training.run_folder import find_checkpoint, newest_intact


@pytest.fixture(scope="module")
def whole_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    train(root, output)
    return output


@pytest.fixture
def own_run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.mark.parametrize("wanted", ["last", "last.ckpt", "checkpoints/step_4.ckpt"])
def test_a_run_continues_in_its_own_folder(
    root: Path, whole_run: Path, tmp_path: Path, wanted: str
) -> None:
    output = tmp_path / "run"
    with pytest.raises(OSError, match="data are gone"):
        train(root, output, callbacks=[Crash(5)])
    assert not (output / "last.pt").exists()
    train(root, output, resume="last" if wanted == "last" else output / wanted)
    assert_same_state(whole_run / "last.ckpt", output / "last.ckpt")
    assert_same_state(whole_run / "checkpoints/step_6.ckpt", output / "checkpoints/step_6.ckpt")
    # Those of both parts of the run count as its own.
    assert contents(output).keys() == contents(whole_run).keys()


def test_last_starts_a_run_that_has_no_checkpoint_yet(
    root: Path, whole_run: Path, tmp_path: Path
) -> None:
    train(root, tmp_path / "run", resume="last")
    assert_same_state(whole_run / "last.ckpt", tmp_path / "run" / "last.ckpt")
    assert find_checkpoint(tmp_path, "last") is None
    with pytest.raises(FileNotFoundError, match="no best checkpoint yet"):
        find_checkpoint(tmp_path, "best")
    with pytest.raises(FileNotFoundError, match="absent: no such checkpoint"):
        find_checkpoint(tmp_path, tmp_path / "absent")


def test_a_requeued_job_continues_by_itself(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint(own_run, None) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_checkpoint(own_run, None) == own_run / "last.ckpt"


def test_the_folder_of_another_run_is_left_alone(root: Path, own_run: Path, tmp_path: Path) -> None:
    before = contents(own_run)
    with pytest.raises(FileExistsError, match=r"continue that run with --ckpt_path .*last\.ckpt"):
        train(root, own_run)
    other = Path(shutil.copytree(own_run, tmp_path / "other"))
    with pytest.raises(FileExistsError, match=r"last\.ckpt exists"):
        train(root, own_run, resume=other / "last.ckpt")
    assert contents(own_run) == before


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "zeroed": bytes(changed),
            "text": b"weights",
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "cut", "zeroed", "text"])
def test_a_damaged_checkpoint_names_the_newest_whole_one(
    root: Path, own_run: Path, how: str
) -> None:
    damage(own_run / "last.ckpt", how)
    damage(own_run / "checkpoints" / "step_6.ckpt", how)
    before = contents(own_run)
    message = r"last\.ckpt .*(.|\n)*newest whole checkpoint is .*step_4\.ckpt"
    with pytest.raises(CheckpointError, match=message):
        train(root, own_run, resume="last", max_steps=8)
    assert contents(own_run) == before
    train(root, own_run, resume=own_run / "checkpoints" / "step_4.ckpt")
    assert torch.load(own_run / "last.ckpt", weights_only=True)["global_step"] == STEPS


def test_weights_that_are_not_finite_are_not_continued(root: Path, own_run: Path) -> None:
    content = torch.load(own_run / "last.ckpt", weights_only=True)
    content["state_dict"]["model.head.classifier.bias"][0] = float("nan")
    torch.save(content, own_run / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"head\.classifier\.bias are NaN(.|\n)*step_6\.ckpt"):
        train(root, own_run, resume="last", max_steps=8)


def test_a_model_file_is_no_checkpoint(root: Path, own_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt holds weights alone.*--checkpoint"):
        train(root, own_run, resume=own_run / "last.pt", max_steps=8)


def test_newest_intact_is_by_time_and_may_be_missing(own_run: Path) -> None:
    os.utime(own_run / "checkpoints" / "step_4.ckpt")
    assert newest_intact(own_run / "last.ckpt") == own_run / "checkpoints" / "step_4.ckpt"
    for path in (own_run / "checkpoints").iterdir():
        path.unlink()
    assert newest_intact(own_run / "last.ckpt") is None


def test_a_run_killed_before_its_model_was_written_can_be_finished(
    root: Path, own_run: Path, tmp_path: Path
) -> None:
    (own_run / "last.pt").rename(tmp_path / "expected.pt")
    assert train(root, own_run, resume="last").exists()
    found, expected = load_model(own_run / "last.pt"), load_model(tmp_path / "expected.pt")
    for key, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[key]), key
    written = train(root, tmp_path / "elsewhere", resume=own_run / "last.ckpt")
    assert load_model(written).trained_on == expected.trained_on


def test_what_killed_writers_left_is_removed(root: Path, own_run: Path) -> None:
    left = [
        own_run / ".last.ckpt.0123abcd.tmp",
        own_run / ".last.pt.0123abcd.tmp",
        own_run / "checkpoints" / ".step_4.ckpt.0123abcd.tmp",
    ]
    others = [own_run / ".notes.tmp", own_run / "checkpoints" / ".step_4.ckpt.tmp"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    train(root, own_run, resume="last", max_steps=STEPS + 1)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_files_of_others_among_the_checkpoints_stay(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    others = [folder / name for name in ("step_best.ckpt", "step_80000.ckpt", "step_90000.ckpt")]
    for path in others:
        path.write_bytes(b"somebody's")
    train(root, tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {
        "step_4.ckpt",
        "step_6.ckpt",
        *(path.name for path in others),
    }
    assert all(path.read_bytes() == b"somebody's" for path in others)


def test_two_runs_in_one_folder_are_kept_apart(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").write_text("process 77 on here\n")
    before = contents(folder)
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="process 77 on here is training into"):
            train(root, folder)
    assert contents(folder) == before
    train(root, folder, max_steps=2)
    # It is free again for the rest of this process.
    train(root, folder, max_steps=3, resume="last")
