"""A run's own folder: continuing in it, refusing others, leaving it alone where nothing starts."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.tiny_training import (
    OVERRIDES,
    assert_same_state,
    make_data,
    make_dataset,
    make_module,
    run,
)
from vss_models import CheckpointError, load_model
from vss_models.cli import main
from vss_models.training import RunCheckpoints
from vss_models.training.run_folder import find_checkpoint, newest_intact

STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


def train(root: Path, output: Path, max_steps: int = STEPS, **options: Any) -> Path:
    """Trains MRCFA and saves every second step."""
    options = {"checkpoints": RunCheckpoints(every_n_steps=2, keep=2), **options}
    return run(make_module(), make_data(root), output, max_steps, **options)


@pytest.fixture(scope="module")
def whole_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    train(root, output)
    return output


@pytest.fixture
def own_run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


class Crash(Callback):
    """Ends a run after a step as an error in the middle of it would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise OSError("the data are gone")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


class Scores(Callback):
    """Notes the mIoU after every validation."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.by_step[trainer.global_step] = float(trainer.callback_metrics["val/mIoU"])


def test_the_best_by_validation_is_kept(root: Path, tmp_path: Path) -> None:
    scores = Scores()
    options: dict[str, Any] = {"limit_val_batches": 4, "val_check_interval": 1}
    with pytest.raises(OSError, match="data are gone"):
        train(root, tmp_path, **options, callbacks=[scores, Crash(4)])
    train(root, tmp_path, **options, callbacks=[scores], resume="last")
    assert list(scores.by_step) == [1, 2, 3, 4, 5, 6]
    best = max(scores.by_step, key=lambda step: scores.by_step[step])
    assert len(set(scores.by_step.values())) > 1
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert content["global_step"] == best


class CrashInValidation(Callback):
    """Ends a run in the middle of the validation after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and args[2] == 1:
            raise OSError("the data are gone")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_validation_that_was_cut_off_is_made_again(
    root: Path, tmp_path: Path, accumulated: int
) -> None:
    options: dict[str, Any] = {
        "limit_val_batches": 3,
        "val_check_interval": 2 * accumulated,
        "accumulate_grad_batches": accumulated,
    }
    whole, parts, again = Scores(), Scores(), Scores()
    train(root, tmp_path / "whole", **options, callbacks=[whole])
    with pytest.raises(OSError, match="data are gone"):
        train(root, tmp_path / "run", **options, callbacks=[parts, CrashInValidation(4)])
    assert list(parts.by_step) == [2]
    train(root, tmp_path / "run", **options, callbacks=[parts], resume="last")
    assert parts.by_step == whole.by_step
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_state(tmp_path / "whole" / name, tmp_path / "run" / name)

    # What is saved after a validation continues behind it.
    best = max(whole.by_step, key=lambda step: whole.by_step[step])
    train(root, tmp_path / "run", **options, callbacks=[again], resume="best")
    assert list(again.by_step) == [step for step in (2, 4, 6) if step > best]
    assert_same_state(tmp_path / "whole" / "last.ckpt", tmp_path / "run" / "last.ckpt")


def test_no_best_is_kept_on_request(root: Path, tmp_path: Path) -> None:
    checkpoints = RunCheckpoints(every_n_steps=0, keep=0, best=False)
    run(
        make_module(),
        make_data(root),
        tmp_path,
        2,
        checkpoints=checkpoints,
        limit_val_batches=2,
        val_check_interval=1,
    )
    assert contents(tmp_path).keys() == {".lock", "last.ckpt", "last.pt"}


@pytest.mark.parametrize("best_first", [True, False])
def test_best_survives_a_move_and_is_not_replaced_by_worse(
    root: Path, tmp_path: Path, best_first: bool
) -> None:
    """The best of the first part of a run counts in the second, wherever its folder is now."""
    options: dict[str, Any] = {"limit_val_batches": 4, "val_check_interval": 3}
    train(root, tmp_path / "old", max_steps=3, **options)
    path = tmp_path / "old" / "last.ckpt"
    # The checkpoint at the end is from before the validation; take the one with its score.
    shutil.copy(tmp_path / "old" / "best.ckpt", path)
    content = torch.load(path, weights_only=True)
    state = content["callbacks"]["BestCheckpoint"]
    score = torch.tensor(2.0 if best_first else -1.0)
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
    torch.save(content, path)
    (tmp_path / "old").rename(tmp_path / "new")
    train(root, tmp_path / "new", resume="last", **options)
    best = torch.load(tmp_path / "new" / "best.ckpt", weights_only=True)
    assert best["global_step"] == (3 if best_first else 6)


# From the command line.

SETTINGS = [
    "--config=mrcfa_synthetic",
    "--data.train_transform.scale=[96,96]",
    "--data.train_transform.crop=[96,96]",
    "--data.evaluation_transform.scale=[96,96]",
    "--data.num_workers=0",
    "--data.batch_size=1",
    f"--model.overrides={json.dumps(OVERRIDES)}",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=2",
    "--checkpoints.every_n_steps=2",
    "--overlays.every_n_steps=0",
]


def vss(command: str, root: Path, output: Path, *options: str) -> int:
    return main([command, *SETTINGS, f"--data.root={root}", f"--output={output}", *options])


@pytest.fixture(scope="module")
def command_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("command") / "run"
    assert vss("fit", root, output, "--trainer.max_steps=2") == 0
    return output


def test_the_configuration_of_a_run_is_kept(
    root: Path, command_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(command_run, tmp_path / "run"))
    before = contents(output)
    assert "max_steps: 2" in (output / "config.yaml").read_text()
    assert any(name.startswith("events.out") for name in before)

    refused = [
        (["--trainer.max_steps=4"], r"continue that run with --ckpt_path"),
        (["--trainer.max_steps=4", "--ckpt_path=last", "--seed=5"], "seed=0, this one has 5"),
        (["--trainer.max_steps=4", f"--ckpt_path={output / 'last.pt'}"], "weights alone"),
        (["--ckpt_path=last", "--data.num_classes=7"], "num_classes"),
        (["--ckpt_path=last", "--data.offsets=[-1]"], "offsets"),
        (["--ckpt_path=nowhere.ckpt"], "no such checkpoint"),
    ]
    for options, message in refused:
        assert vss("fit", root, output, *options) == 1, options
        assert message in capsys.readouterr().err
        assert contents(output) == before, options

    assert vss("fit", root, output, "--trainer.max_steps=4", "--ckpt_path=last") == 0
    after = contents(output)
    assert after["config.yaml"] == before["config.yaml"]
    assert b"max_steps: 4" in after["config_from_step_2.yaml"]


def test_a_refused_start_makes_no_folder(root: Path, tmp_path: Path) -> None:
    assert vss("fit", root, tmp_path / "a" / "run", "--data.offsets=[-1]") == 1
    assert vss("fit", tmp_path / "nowhere", tmp_path / "b" / "run") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["test", "validate"])
def test_evaluation_writes_its_report_only(
    root: Path, command_run: Path, tmp_path: Path, command: str
) -> None:
    output = Path(shutil.copytree(command_run, tmp_path / "run"))
    before = contents(output)
    assert vss(command, root, output, f"--checkpoint={output / 'last.pt'}") == 0
    after = contents(output)
    added = {name for name in after if not name.startswith("evaluation/")}
    assert added == before.keys()
    assert all(after[name] == before[name] for name in before)
