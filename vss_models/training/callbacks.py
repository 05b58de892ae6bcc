"""What happens around the training loop: checkpoints, sample overlays and the progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from vss_models.checkpoints import save_model
from vss_models.data.transforms import denormalise
from vss_models.training.module import segmentation_module
from vss_models.visualize import overlay

LAST_CHECKPOINT = "last.ckpt"
LAST_MODEL = "last.pt"


class RunCheckpoints(Checkpoint):
    """Saves the run every so many steps and at its end, and the bare model at its end.

    In the trainer's ``default_root_dir``: ``checkpoints/step_<n>.ckpt``, of which the newest few
    are kept; ``last.ckpt``, always the newest state of the run; ``last.pt``, the model alone, for
    evaluation and inference. Files are replaced when their successors are complete.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; 0 saves at the end only.
        keep: Number of ``step_<n>.ckpt`` files to keep; 0 writes ``last.ckpt`` only.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(self, every_n_steps: int = 4000, keep: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses to train into the folder of another run."""
        last = Path(trainer.default_root_dir, LAST_CHECKPOINT)
        if stage == "fit" and not trainer.ckpt_path and last.exists():
            raise FileExistsError(
                f"{last} exists: continue that run with --ckpt_path {last}, or choose another "
                "output folder"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers where a resumed run starts."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Saves after the optimizer step of every n-th step and of the last one."""
        step = trainer.global_step
        due = step == trainer.max_steps or (self.every_n_steps and step % self.every_n_steps == 0)
        if due and step != self._saved_step:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end of a run that stopped early, and the model."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        if trainer.is_global_zero:
            model = segmentation_module(trainer).model
            save_model(model, Path(trainer.default_root_dir, LAST_MODEL))
        trainer.strategy.barrier()

    def _save(self, trainer: pl.Trainer) -> None:
        root = Path(trainer.default_root_dir)
        folder = root / "checkpoints"
        self._saved_step = trainer.global_step
        # All processes take part: sharded strategies write together.
        if self.keep:
            trainer.save_checkpoint(folder / f"step_{trainer.global_step}.ckpt", weights_only=False)
        trainer.save_checkpoint(root / LAST_CHECKPOINT, weights_only=False)
        if trainer.is_global_zero and self.keep:
            saved = sorted(folder.glob("step_*.ckpt"), key=lambda path: int(path.stem[5:]))
            for path in saved[: -self.keep]:
                path.unlink()


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
