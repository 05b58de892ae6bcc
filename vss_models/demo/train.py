"""The demonstration's trainings, each `vss fit` in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vss_models.command_processes import run_command
from vss_models.demo.settings import FAMILIES, DemoSettings

FIRST = "segformer_start"
"""Folder of the SegFormer that all models start from."""

LOG = "train.log"
TARGET_LOSS = {
    "segformer": "train/loss_per_frame",
    "mrcfa": "train/loss_target_3",
    "cffm": "train/loss_target_0",
}
"""What each model logs as the plain cross-entropy of the prediction that is evaluated."""

_LOGGED_STEPS = 100
"""Points of a learning curve, about."""


def train_first(data: Path, out: Path, settings: DemoSettings) -> Path:
    """Trains the SegFormer that all models start from; returns its file of weights."""
    command = fit_command("segformer", data, out / FIRST, settings.first_steps, settings)
    # Steps on such small crops gain little from a second thread, more from one that loads the next.
    threads = torch.get_num_threads()
    command += ["--data.num_workers", str(min(1, threads - 1))]
    _run(command, out / FIRST, max(1, threads - 1))
    return out / FIRST / "last.pt"


def train_all(data: Path, out: Path, start: Path, settings: DemoSettings) -> None:
    """Trains every model from the same SegFormer for as many steps, as many at once as fit.

    Args:
        data: Folder of the data set.
        out: Folder that gets one run per model, named as its family.
        start: Weights to start from.
        settings: Steps and sizes.

    Raises:
        RuntimeError: If a training fails; the message names its log and what it said last.
    """
    threads = torch.get_num_threads()
    at_once = min(threads, len(FAMILIES))
    # The longest first, so that the short one fills the gap at the end.
    with ThreadPoolExecutor(at_once) as pool:
        trainings = []
        for family in reversed(FAMILIES):
            command = fit_command(family, data, out / family, settings.steps, settings)
            command += ["--checkpoint", str(start)]
            trainings.append(pool.submit(_run, command, out / family, threads // at_once))
        for training in trainings:
            training.result()


def fit_command(
    family: str, data: Path, output: Path, steps: int, settings: DemoSettings
) -> list[str]:
    """Returns the `vss fit` command of one training, without the `vss`."""
    height, width = settings.size
    offsets = [] if family == "segformer" else list(settings.offsets)
    options = {
        "config": f"{family}_synthetic",
        "output": output,
        "seed": settings.seed,
        "data.root": data,
        "data.offsets": offsets,
        "data.batch_size": settings.batch_size,
        "data.train_transform.scale": [width, height],
        "data.train_transform.ratio_range": [0.75, 1.5],
        "data.train_transform.crop": list(settings.crop),
        "data.evaluation_transform.scale": [width, height],
        "model.auxiliary_weight": settings.auxiliary_weight,
        "trainer.max_steps": steps,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": max(1, steps // _LOGGED_STEPS),
        "checkpoints.every_n_steps": 0,
        "overlays.every_n_steps": 0,
    }
    return ["fit"] + [part for name, value in options.items() for part in (f"--{name}", str(value))]


def learning_curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """Reads (step, value) of one logged figure from a run's TensorBoard log."""
    events = EventAccumulator(str(run)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def _run(command: Sequence[str], output: Path, threads: int) -> None:
    """Runs a command that logs into its output folder."""
    output.mkdir(parents=True, exist_ok=True)
    print(f"{output.name}: training, see {output / LOG}", flush=True)
    status = run_command(command, output / LOG, threads)
    if status != 0:
        said = (output / LOG).read_text(encoding="utf-8").strip().rpartition("\n")[2]
        raise RuntimeError(
            f"the training of {output.name} ended with status {status}, see {output / LOG}: {said}"
        )


__all__ = ["FIRST", "TARGET_LOSS", "fit_command", "learning_curve", "train_all", "train_first"]
