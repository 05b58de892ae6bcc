"""Stops a training whose loss or weights are no longer finite, at the step where that began."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from vss_models.checkpoints.io import write_file
from vss_models.training.data import VideoDataModule


class _Observed(NamedTuple):
    """A loss whose value may still be on its way from a GPU."""

    step: int
    batch: int
    loss: Tensor
    copied: torch.cuda.Event | None


class DivergenceWatch:
    """Looks at the loss of every batch without having the host wait for a GPU.

    On a CPU a loss is looked at before its gradients are used. On a GPU the value is copied in the
    background and looked at while the next batch runs.
    """

    def __init__(self) -> None:
        self._observed: _Observed | None = None

    def observe(self, trainer: pl.Trainer, batch: int, loss: Tensor) -> None:
        """Takes note of a loss, and looks at the one before it.

        Args:
            trainer: The trainer, before this batch's optimizer step.
            batch: How many batches the run had before this one.
            loss: The batch's loss, a scalar.

        Raises:
            FloatingPointError: If a loss is not finite.
        """
        self.look(trainer)
        copied = None
        loss = loss.detach()
        if loss.is_cuda:
            # A tensor of its own: a CUDA graph's next replay writes into the same loss.
            loss = loss.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._observed = _Observed(trainer.global_step, batch, loss, copied)
        if copied is None:
            self.look(trainer)

    def look(self, trainer: pl.Trainer) -> None:
        """Looks at the latest loss.

        Raises:
            FloatingPointError: If it is not finite. The message names the step, the videos and a
                file with the batch, from which it can be computed again.
        """
        observed, self._observed = self._observed, None
        if observed is None:
            return
        if observed.copied is not None:
            observed.copied.synchronize()
        if not torch.isfinite(observed.loss).all():
            raise FloatingPointError(
                f"the loss is {float(observed.loss)} at step {observed.step}"
                f"{_reproduction(trainer, observed)}. Continue from an earlier checkpoint with a "
                "lower learning rate or in a wider precision"
            )

    def check(self, trainer: pl.Trainer, model: torch.nn.Module) -> None:
        """Checks the latest loss and every weight; to be called before anything is saved.

        Raises:
            FloatingPointError: If something is not finite.
        """
        self.look(trainer)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise FloatingPointError(
                    f"{name} holds NaN or infinite weights after step {trainer.global_step}, "
                    "although the loss was finite: a gradient overflowed. Nothing is saved; "
                    "continue from an earlier checkpoint with a lower learning rate, with "
                    "trainer.gradient_clip_val or in a wider precision"
                )


def _reproduction(trainer: pl.Trainer, observed: _Observed) -> str:
    """Keeps the batch in the run's folder and says so."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VideoDataModule):
        return ""
    items = data.training_items(observed.batch)
    rank = f"_process_{trainer.global_rank}" if trainer.world_size > 1 else ""
    path = Path(trainer.default_root_dir, f"not_finite_step_{observed.step}{rank}.pt")
    write_file(
        {
            "step": observed.step,
            "batch": observed.batch,
            "videos": [name for name, _ in items],
            "clip": torch.stack([item["clip"] for _, item in items]),
            "labels": torch.stack([item["labels"] for _, item in items]),
        },
        path,
    )
    videos = ", ".join(dict.fromkeys(name for name, _ in items))
    return f", of clips of the videos {videos}; the batch is kept in {path}"
