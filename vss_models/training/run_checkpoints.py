"""When a run saves its state, and how much of it is kept."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vss_models.checkpoints import save_model
from vss_models.training.divergence import DivergenceWatch
from vss_models.training.interruption import StopSignals, TrainingStopped, requeue
from vss_models.training.module import segmentation_module
from vss_models.training.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINT_FOLDER,
    LAST_CHECKPOINT,
    LAST_MODEL,
    RunLogger,
)


class _FolderCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints with fixed names in the run's folder, which may be moved.

    Args:
        subfolder: Where in the trainer's ``default_root_dir`` the files lie.
        **options: Those of the base class.
    """

    def __init__(self, subfolder: str, **options: Any) -> None:
        super().__init__(
            mode="max",
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
            **options,
        )
        self._subfolder = subfolder

    @property
    def state_key(self) -> str:
        """Name of this callback's state in checkpoints, whatever its settings are."""
        return type(self).__name__

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the folder of the run."""
        self.dirpath = str(Path(trainer.default_root_dir, self._subfolder).absolute())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over those of the run's files that are in this run's folder.

        Args:
            state_dict: State of this callback in a checkpoint, perhaps of another folder.
        """
        assert self.dirpath is not None
        scores: dict[str, Tensor] = state_dict["best_k_models"]
        found = {str(Path(self.dirpath, Path(path).name)): score for path, score in scores.items()}
        self.best_k_models = {path: score for path, score in found.items() if Path(path).is_file()}
        if self.best_k_models:
            self.kth_best_model_path = min(self.best_k_models, key=self.best_k_models.__getitem__)
            self.kth_value = self.best_k_models[self.kth_best_model_path]
            self.best_model_path = max(self.best_k_models, key=self.best_k_models.__getitem__)
            self.best_model_score = self.best_k_models[self.best_model_path]


class BestCheckpoint(_FolderCheckpoint):
    """Keeps ``best.ckpt``, the state of the run at its highest mIoU in validation."""

    def __init__(self) -> None:
        name = Path(BEST_CHECKPOINT).stem
        super().__init__("", filename=name, monitor="val/mIoU", save_top_k=1)


class RunCheckpoints(_FolderCheckpoint):
    """Saves the run every so many steps, before validations and at its end, and the bare model.

    In the trainer's ``default_root_dir``: ``checkpoints/step_<n>.ckpt``, of which the newest few
    are kept; ``last.ckpt``, always the newest state of the run; ``best.ckpt``, the one of the
    highest mIoU in validation; ``last.pt``, the model alone, for evaluation and inference. Files
    are replaced when their successors are complete, and only if loss and weights are finite.

    A run that is told to end (Ctrl-C, SIGTERM) saves ``last.ckpt`` after the step in progress.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; 0 saves before validations and at
            the end only.
        keep: Number of ``step_<n>.ckpt`` files to keep; 0 writes ``last.ckpt`` only.
        best: Whether to keep ``best.ckpt``.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(self, every_n_steps: int = 4000, keep: int = 2, best: bool = True) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        super().__init__(CHECKPOINT_FOLDER, filename="step_{step}", monitor="step", save_top_k=keep)
        self.every_n_steps = every_n_steps
        self.best = best
        self._watch = DivergenceWatch()
        self._signals = StopSignals()
        self._seen_step = 0
        self._has_written_model = False
        self._validation_follows = False
        self._validation_is_due = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Has a run that continues from before a validation begin with that validation.

        Lightning would leave it out, unless the checkpoint says that it has begun.
        """
        progress = _validation_progress(checkpoint)
        if self._validation_follows:
            progress["total"].update(ready=1, started=1, processed=0, completed=0)
            progress["current"].update(ready=0, started=0, processed=0, completed=0)
        else:
            # After a resumed run's first validation, Lightning still counts the mark above.
            done = progress["total"]["processed"]
            progress["total"].update(ready=done, started=done, completed=done)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remembers whether the checkpoint is from before a validation."""
        total = _validation_progress(checkpoint)["total"]
        self._validation_is_due = total["ready"] > total["processed"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers where a resumed run starts, and takes over the signals that end it."""
        self._seen_step = self._last_global_step_saved = trainer.global_step
        self._signals.start()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Looks whether the loss is finite."""
        self._watch.observe(trainer, segmentation_module(trainer).batches_started - 1, loss)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves after the optimizer step of every n-th step, and of the last one.

        Raises:
            TrainingStopped: If a signal told the run to end.
        """
        step = trainer.global_step
        if step == self._seen_step:
            return  # gradients accumulate, and are not part of a checkpoint
        self._seen_step = step
        signalled = self._signals.received is not None
        if trainer.world_size > 1:
            signalled = trainer.strategy.reduce_boolean_decision(signalled, all=False)
        periodic = self.every_n_steps > 0 and step % self.every_n_steps == 0
        self._validation_follows = _validation_follows(trainer, batch_idx)
        if periodic or step == trainer.max_steps:
            self._save(trainer, with_step=True)
        elif signalled or self._validation_follows:
            self._save(trainer, with_step=False)
        self._validation_follows = False
        if signalled:
            self._end(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends during a validation too; the state was saved before it.

        Raises:
            TrainingStopped: If a signal told the run to end.
        """
        alone = trainer.world_size == 1  # several processes agree after the next step
        if self._signals.received is not None and alone and not trainer.sanity_checking:
            self._end(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the base class's saving after validations to :class:`BestCheckpoint`."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves nothing: a run has one epoch, whose end is that of the training."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end of a run that stopped early, and the model."""
        if trainer.global_step != self._last_global_step_saved:
            self._save(trainer, with_step=True)
        self._watch.check(trainer, segmentation_module(trainer).model)
        self._write_model(trainer)
        self._signals.stop()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finishes a run that was killed after its last step: its validation and its model."""
        if self._has_written_model:
            return
        if self._validation_is_due:
            _validate(trainer)
        self._write_model(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back; in the middle of a step there is nothing to save."""
        self._signals.stop()

    def _find_last_checkpoints(self, trainer: pl.Trainer) -> set[str]:
        last = Path(trainer.default_root_dir, LAST_CHECKPOINT)
        return {str(last)} if last.exists() else set()

    def _save(self, trainer: pl.Trainer, with_step: bool) -> None:
        self._watch.check(trainer, segmentation_module(trainer).model)
        # All processes take part: sharded strategies write together.
        if with_step:
            self._save_topk_checkpoint(trainer, {"step": torch.tensor(trainer.global_step)})
        self._save_checkpoint(trainer, str(Path(trainer.default_root_dir, LAST_CHECKPOINT)))

    def _write_model(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            model = segmentation_module(trainer).model
            save_model(model, Path(trainer.default_root_dir, LAST_MODEL))
        self._has_written_model = True
        trainer.strategy.barrier()

    def _end(self, trainer: pl.Trainer) -> None:
        number = self._signals.received or signal.SIGTERM  # another process got it
        if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
            requeue()
        raise TrainingStopped(number)


def _validation_progress(checkpoint: dict[str, Any]) -> dict[str, dict[str, int]]:
    return checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]


def _validate(trainer: pl.Trainer) -> None:
    """Validates outside the training loop, which a trainer without steps left does not enter."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.start()
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a validation, during which a run might be killed, comes after this batch."""
    if not trainer.enable_validation or trainer.state.fn != TrainerFn.FITTING:
        return False
    every = trainer.val_check_batch
    return every is not None and (batch_idx + 1) % every == 0


__all__ = ["BestCheckpoint", "RunCheckpoints"]
