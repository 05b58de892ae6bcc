"""What is shown of a training while it runs: sample overlays and the progress bar."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from vss_models.data.transforms import denormalise
from vss_models.training.module import segmentation_module
from vss_models.visualize import overlay


class SampleOverlays(Callback):
    """Shows frame, truth and prediction of the first training clips in TensorBoard.

    Args:
        every_n_steps: Optimizer steps between two pictures; 0 for none.
        count: Clips a picture.

    Raises:
        ValueError: If ``every_n_steps`` is negative or ``count`` not positive.
    """

    def __init__(self, every_n_steps: int = 1000, count: int = 2) -> None:
        if every_n_steps < 0 or count < 1:
            raise ValueError(
                "every_n_steps must not be negative and count at least 1, got "
                f"{every_n_steps} and {count}"
            )
        self.every_n_steps = every_n_steps
        self.count = count
        self._shown_step = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        """Writes a picture when one is due."""
        step = trainer.global_step
        due = self.every_n_steps and step % self.every_n_steps == 0 and step != self._shown_step
        if not due or not isinstance(trainer.logger, TensorBoardLogger):
            return
        if not trainer.is_global_zero:
            return
        module = segmentation_module(trainer)
        self._shown_step = step
        clip, labels = batch["clip"][: self.count], batch["labels"][: self.count, -1]
        module.eval()
        with torch.no_grad():
            predictions = module.predict(clip)
        module.train()
        frames = denormalise(clip[:, -1]).permute(0, 2, 3, 1).cpu().numpy()
        palette = module.classes.palette()
        rows = [
            [frame, overlay(frame, truth, palette), overlay(frame, guess, palette)]
            for frame, truth, guess in zip(
                frames, labels.cpu().numpy(), predictions.cpu().numpy(), strict=True
            )
        ]
        picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        trainer.logger.experiment.add_image(
            "train/frame_truth_prediction", picture, step, dataformats="HWC"
        )


class TrainingProgressBar(RichProgressBar):
    """Lightning's rich progress bar, counting to the end of the run rather than of an epoch."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._figures: dict[str, int | str | float | dict[str, float]] = {}

    @property
    def total_train_batches(self) -> int | float:
        """Batches of the whole run on one process."""
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The figures beside the bar, without the log folder's version number.

        Those of a training step are read when they are logged: reading them after every step would
        have the host wait for the GPU instead of launching the next step.
        """
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_due = every > 0 and trainer.global_step % every == 0
        if is_due or not trainer.training or not self._figures:
            self._figures = super().get_metrics(trainer, pl_module)
            self._figures.pop("v_num", None)
        return dict(self._figures)
