"""Short runs in folders, and ways to end them early; shared by the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tests.support.tiny_training import make_data, make_module, run
from vss_models.training import RunCheckpoints

STEPS = 6


def train(root: Path, output: Path, max_steps: int = STEPS, **options: Any) -> Path:
    """Trains MRCFA and saves every second step."""
    options = {"checkpoints": RunCheckpoints(every_n_steps=2, keep=2), **options}
    return run(make_module(), make_data(root), output, max_steps, **options)


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
