"""Signals end a training between two steps; killed or told to end, it continues bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.tiny_training import (
    assert_same_state,
    make_data,
    make_module,
    run,
)
from vss_models.commands.errors import EndedBySignal
from vss_models.training import RunCheckpoints

PROJECT = Path(__file__).parent.parent
STEPS = 6

# What `vss fit` does, on the tiny data set and model, with an exit status as `vss` has it.
PROGRAM = """
import sys
from pathlib import Path

from tests.support.tiny_training import make_data, make_module, run
from vss_models.commands import train
from vss_models.cli import main
from vss_models.training import RunCheckpoints

def fit(arguments):
    root, output, steps = arguments[1:]
    checkpoints = RunCheckpoints(every_n_steps=1, keep=3)
    data = make_data(Path(root), num_workers=2)
    run(make_module(), data, Path(output), int(steps), resume="last", checkpoints=checkpoints)
    return 0

train.main = fit
sys.exit(main(["fit", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def whole_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    run(
        make_module(),
        make_data(root),
        output,
        STEPS,
        accumulate_grad_batches=2,
        checkpoints=RunCheckpoints(every_n_steps=0),
    )
    return output


class Send(Callback):
    """Sends this process a signal when a batch begins, or a frame of a validation."""

    def __init__(self, number: int, batch: int, in_validation: bool = False) -> None:
        self.number = number
        self.batch = batch
        self.in_validation = in_validation

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        if index == self.batch and not self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.batch and self.in_validation:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("batch", [4, 5])
def test_a_signal_saves_after_the_step_and_the_run_continues_exactly(
    root: Path, whole_run: Path, tmp_path: Path, number: signal.Signals, batch: int
) -> None:
    """Batches 4 and 5 make up step 3; half a step cannot be saved."""
    before = signal.getsignal(number)
    options: dict[str, Any] = {"accumulate_grad_batches": 2}
    with pytest.raises(EndedBySignal, match=number.name) as ended:
        run(
            make_module(),
            make_data(root),
            tmp_path,
            STEPS,
            **options,
            callbacks=[Send(number, batch)],
        )
    assert ended.value.number == number
    assert signal.getsignal(number) == before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not (tmp_path / "last.pt").exists()
    run(make_module(), make_data(root), tmp_path, STEPS, **options, resume="last")
    assert_same_state(whole_run / "last.ckpt", tmp_path / "last.ckpt")


def test_a_signal_ends_a_validation_at_once(root: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            seen.append(trainer.global_step)

    with pytest.raises(EndedBySignal):
        run(
            make_module(),
            make_data(root),
            tmp_path,
            STEPS,
            limit_val_batches=8,
            val_check_interval=2,
            callbacks=[Count(), Send(signal.SIGTERM, batch=4, in_validation=True)],
        )
    assert seen == [2] * 8 + [4]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_the_second_signal_ends_at_once(root: Path, tmp_path: Path) -> None:
    sends = [Send(signal.SIGTERM, 1), Send(signal.SIGTERM, 1)]
    with pytest.raises(EndedBySignal, match="SIGTERM"):
        run(make_module(), make_data(root), tmp_path, STEPS, callbacks=sends)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_slurm_job_is_requeued(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    output = tmp_path / "run"
    with pytest.raises(EndedBySignal, match="SIGUSR1"):
        run(
            make_module(), make_data(root), output, STEPS, callbacks=[Send(signal.SIGUSR1, batch=1)]
        )
    assert (tmp_path / "called").read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(make_module(), make_data(root), output, STEPS)
    assert torch.load(output / "last.ckpt", weights_only=True)["global_step"] == STEPS


def start(tmp_path: Path, root: Path, output: Path, steps: int) -> subprocess.Popen[str]:
    program = tmp_path / "fit.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(root), str(output), str(steps)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600  # only so that a hang ends: other tests may take the cores
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


def finish(tmp_path: Path, root: Path, output: Path, steps: int) -> None:
    process = start(tmp_path, root, output, steps)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def long_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("long")
    finish(output, root, output / "run", 30)
    return output / "run"


def kill_and_continue(tmp_path: Path, root: Path, long_run: Path, step: int, delay: float) -> None:
    output = tmp_path / "run"
    process = start(tmp_path, root, output, 30)
    wait_until((output / "checkpoints" / f"step_{step}.ckpt").exists, process)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(tmp_path, root, output, 30)
    assert_same_state(long_run / "last.ckpt", output / "last.ckpt")
    found = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    assert found == sorted(str(path.relative_to(long_run)) for path in long_run.rglob("*"))


def test_a_killed_run_continues_in_place_bit_for_bit(
    tmp_path: Path, root: Path, long_run: Path
) -> None:
    kill_and_continue(tmp_path, root, long_run, step=3, delay=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(8))
def test_killed_at_any_moment(tmp_path: Path, root: Path, long_run: Path, trial: int) -> None:
    generator = np.random.default_rng(trial)
    delay = float(generator.uniform(0, 0.3))
    kill_and_continue(tmp_path, root, long_run, int(generator.integers(1, 20)), delay)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_exit_status_says_which_signal_it_was(
    tmp_path: Path, root: Path, number: signal.Signals
) -> None:
    """A terminal and a scheduler tell all processes, the loading ones too."""
    output = tmp_path / "run"
    process = start(tmp_path, root, output, 10_000)
    wait_until((output / "last.ckpt").exists, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert f"vss fit: ended by {number.name}" in errors
    assert "Traceback" not in errors
