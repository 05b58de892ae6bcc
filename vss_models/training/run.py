"""Training from Python: what `vss fit` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from vss_models.training.callbacks import SampleOverlays, TrainingProgressBar
from vss_models.training.checkpoint_io import AtomicCheckpointIO
from vss_models.training.data import VideoDataModule
from vss_models.training.interruption import stops_become_signals
from vss_models.training.module import SegmentationModule
from vss_models.training.run_checkpoints import BestCheckpoint, RunCheckpoints
from vss_models.training.run_folder import (
    LAST_MODEL,
    RunFolder,
    RunLogger,
    check_run_folder,
    find_checkpoint,
)


def trainer_parts(
    output: Path | str,
    callbacks: Sequence[Callback] | Callback | None = None,
    plugins: Any = None,
    logger: Any = None,
) -> dict[str, Any]:
    """Arguments of a trainer that every run has, added to the caller's own.

    Args:
        output: Folder of the run.
        callbacks: The caller's callbacks.
        plugins: The caller's plugins.
        logger: The caller's logger, False for none; None or True for TensorBoard in ``output``.

    Returns:
        Keyword arguments of :class:`lightning.pytorch.Trainer`.
    """
    if logger is None or logger is True:
        logger = RunLogger(output)
    all_callbacks = _as_list(callbacks)
    if logger:
        all_callbacks.append(LearningRateMonitor("step"))
    return {
        "default_root_dir": output,
        "logger": logger,
        "callbacks": all_callbacks,
        "plugins": [*_as_list(plugins), AtomicCheckpointIO()],
        "use_distributed_sampler": False,
    }


def fit(
    module: SegmentationModule,
    data: VideoDataModule,
    output: Path | str,
    max_steps: int,
    *,
    resume: Path | str | None = None,
    checkpoints: RunCheckpoints | None = None,
    overlays: SampleOverlays | None = None,
    progress_bar: bool = True,
    **trainer_options: Any,
) -> Path:
    """Trains a model.

    Args:
        module: Model, loss and optimizer.
        data: Training and validation data.
        output: Folder for checkpoints, logs and the trained model.
        max_steps: Optimizer steps of the whole run.
        resume: A checkpoint of this run to continue from: a file, or "last" or "best" for those in
            ``output``; with "last" a run that has none starts anew.
        checkpoints: When to save; by default every 4000 steps and at the end.
        overlays: When to show samples in TensorBoard; by default every 1000 steps.
        progress_bar: Whether to show progress on the terminal.
        **trainer_options: Further arguments of :class:`lightning.pytorch.Trainer`.

    Returns:
        The file of the trained model, for :func:`vss_models.checkpoints.load_model`.

    Raises:
        BlockingIOError: If another process trains into ``output``.
        CheckpointError: If ``resume`` is damaged or no checkpoint of a run.
        FileExistsError: If ``output`` holds a run and ``resume`` is not of it.
        FileNotFoundError: If ``resume`` is not there.
        FloatingPointError: If the loss or the weights are no longer finite.
        KeyboardInterrupt: If a signal ended the run; its state is saved.
        ValueError: If data and model do not fit each other.
    """
    output = Path(output)
    checkpoint = find_checkpoint(output, resume)
    check_run_folder(output, checkpoint)
    saving = checkpoints or RunCheckpoints()
    callbacks = [RunFolder(), *_as_list(trainer_options.pop("callbacks", None))]
    callbacks += [*([BestCheckpoint()] if saving.best else []), saving]
    callbacks.append(overlays or SampleOverlays())
    if progress_bar:
        callbacks.append(TrainingProgressBar(refresh_rate=1))
    parts = trainer_parts(
        output, callbacks, trainer_options.pop("plugins", None), trainer_options.pop("logger", None)
    )
    trainer = pl.Trainer(
        max_steps=max_steps, enable_progress_bar=progress_bar, **parts, **trainer_options
    )
    with stops_become_signals():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return output / LAST_MODEL


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
