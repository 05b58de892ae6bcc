"""The progress bar of training: it must not have the host wait for the GPU in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from vss_models.training.callbacks import TrainingProgressBar


class Counting(pl.LightningModule):
    """Logs the number of each step as its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        self.log("loss", torch.tensor(float(self.steps)), prog_bar=True)
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Reading(TrainingProgressBar):
    """Notes what the bar shows after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        self.shown.append(self.get_metrics(trainer, trainer.lightning_module)["loss"])


@pytest.mark.parametrize(
    ("every", "shown"), [(4, [1, 1, 1, 4, 4, 4, 4, 8, 8, 8, 8]), (0, [1] * 11)]
)
def test_figures_are_read_when_they_are_logged(
    every: int, shown: list[int], tmp_path: Path
) -> None:
    bar = Reading()
    trainer = pl.Trainer(
        max_steps=11,
        log_every_n_steps=every,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[bar],
        default_root_dir=tmp_path,
    )
    trainer.fit(Counting(), DataLoader(torch.zeros(11, 1), batch_size=1))
    assert bar.shown == shown
