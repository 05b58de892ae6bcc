"""A training that diverges stops where it began, says with which clips, and saves nothing bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.tiny_training import make_data, make_module, run
from vss_models.training import RunCheckpoints

NAN = float("nan")


class SetNan(Callback):
    """Makes a weight NaN before a step's forward pass or after its update."""

    def __init__(self, step: int, after: bool = False) -> None:
        self.step = step
        self.after = after
        self.batches: dict[int, dict[str, torch.Tensor]] = {}

    def set_nan(self, module: Any) -> None:
        with torch.no_grad():
            module.model.head.classifier.bias[2] = NAN

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, torch.Tensor], index: int
    ) -> None:
        self.batches[trainer.global_step] = {key: value.clone() for key, value in batch.items()}
        if trainer.global_step == self.step and not self.after:
            self.set_nan(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step and self.after:
            self.set_nan(pl_module)


def is_finite(path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(torch.isfinite(value).all()) for value in state.values())


def test_the_first_bad_step_is_named_and_can_be_reproduced(root: Path, tmp_path: Path) -> None:
    setter = SetNan(step=5)
    message = (
        r"the loss is nan at step 5, of clips of the videos train_000\d, train_000\d; the batch is "
        r"kept in .*not_finite_step_5\.pt"
    )
    with pytest.raises(FloatingPointError, match=message):
        run(
            make_module(),
            make_data(root),
            tmp_path,
            8,
            checkpoints=RunCheckpoints(every_n_steps=2, keep=2),
            callbacks=[setter],
            log_every_n_steps=1000,
        )
    assert sorted(path.name for path in tmp_path.rglob("*.ckpt")) == [
        "last.ckpt",
        "step_2.ckpt",
        "step_4.ckpt",
    ]
    assert all(is_finite(path) for path in tmp_path.rglob("*.ckpt"))
    assert not (tmp_path / "last.pt").exists()
    kept = torch.load(tmp_path / "not_finite_step_5.pt", weights_only=True)
    assert (kept["step"], kept["batch"]) == (5, 5)
    for name in ("clip", "labels"):
        assert torch.equal(kept[name], setter.batches[5][name])
    assert len(kept["videos"]) == 2


def test_the_batch_is_right_in_a_resumed_run_that_accumulates(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "accumulate_grad_batches": 2,
        "checkpoints": RunCheckpoints(every_n_steps=1),
    }
    run(make_module(), make_data(root), tmp_path, 2, **options)
    setter = SetNan(step=3)
    options["checkpoints"] = RunCheckpoints(every_n_steps=1)
    with pytest.raises(FloatingPointError, match="at step 3"):
        run(
            make_module(),
            make_data(root),
            tmp_path,
            5,
            **options,
            callbacks=[setter],
            resume="last",
        )
    kept = torch.load(tmp_path / "not_finite_step_3.pt", weights_only=True)
    assert kept["batch"] == 6
    assert torch.equal(kept["clip"], setter.batches[3]["clip"])


@pytest.mark.parametrize("step", [4, 5, 6])
def test_weights_that_are_not_finite_are_never_saved(root: Path, tmp_path: Path, step: int) -> None:
    """After the last step of all, too, where no further loss would show it."""
    with pytest.raises(FloatingPointError) as caught:
        run(
            make_module(),
            make_data(root),
            tmp_path,
            6,
            checkpoints=RunCheckpoints(every_n_steps=2, keep=2),
            callbacks=[SetNan(step, after=True)],
        )
    if step == 5:
        assert "the loss is nan at step 5" in str(caught.value)
    else:
        message = f"model.head.classifier.bias holds NaN or infinite weights after step {step}"
        assert message.removeprefix("model.") in str(caught.value)
    assert all(is_finite(path) for path in tmp_path.rglob("*.ckpt"))
    steps = {2: ["step_2.ckpt"], 4: ["step_2.ckpt", "step_4.ckpt"]}[4 if step > 4 else 2]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == steps
    assert not (tmp_path / "last.pt").exists()
