"""The best state by validation: kept, found again after a move, and right in a resumed run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.tiny_runs import Crash, contents, train
from tests.support.tiny_training import assert_same_state
from vss_models.training import RunCheckpoints


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


@pytest.mark.parametrize(("accumulated", "step"), [(1, 4), (2, 4), (1, 6), (2, 6)])
def test_a_validation_that_was_cut_off_is_made_again(
    root: Path, tmp_path: Path, accumulated: int, step: int
) -> None:
    """Also the one after the last step."""
    options: dict[str, Any] = {
        "limit_val_batches": 3,
        "logger": True,
        "val_check_interval": 2 * accumulated,
        "accumulate_grad_batches": accumulated,
    }
    whole, parts, again = Scores(), Scores(), Scores()
    train(root, tmp_path / "whole", **options, callbacks=[whole])
    with pytest.raises(OSError, match="data are gone"):
        train(root, tmp_path / "run", **options, callbacks=[parts, CrashInValidation(step)])
    assert list(parts.by_step) == [2, 4, 6][: step // 2 - 1]
    train(root, tmp_path / "run", **options, callbacks=[parts], resume="last")
    assert parts.by_step == whole.by_step
    assert (tmp_path / "run" / "last.pt").exists()
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_state(tmp_path / "whole" / name, tmp_path / "run" / name)

    # What is saved after a validation continues behind it.
    best = max(whole.by_step, key=lambda step: whole.by_step[step])
    train(root, tmp_path / "run", **options, callbacks=[again], resume="best")
    assert list(again.by_step) == [step for step in (2, 4, 6) if step > best]
    assert_same_state(tmp_path / "whole" / "last.ckpt", tmp_path / "run" / "last.ckpt")


def test_no_best_is_kept_on_request(root: Path, tmp_path: Path) -> None:
    checkpoints = RunCheckpoints(every_n_steps=0, keep=0, best=False)
    options: dict[str, Any] = {"limit_val_batches": 2, "val_check_interval": 1}
    train(root, tmp_path, 2, checkpoints=checkpoints, **options)
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
