"""Lets a signal end a training between two steps, when its state can be saved exactly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vss_models.commands.errors import EndedBySignal


class TrainingStopped(BaseException):
    """Ends the trainer's loops after a checkpoint; :func:`stops_become_signals` translates it.

    Lightning turns a KeyboardInterrupt into exit status 1 and SIGTERM into 0, hence a class of its
    own.

    Attributes:
        number: The signal that asked for it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """Notes the first signal; a second one interrupts at once.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP ask to end. Under Slurm so does SIGUSR1, after which the job
    is put into the queue again (``#SBATCH --signal=USR1@120``).

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        """Takes over the signals, where that is possible: in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        names = ["SIGINT", "SIGTERM", "SIGHUP"]
        if "SLURM_JOB_ID" in os.environ:
            names.append("SIGUSR1")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._note) for number in numbers}

    def stop(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise EndedBySignal(number)
        self.received = number
        print(
            f"\n{signal.Signals(number).name}: the training ends after this step and saves its "
            "state; the same signal again ends it at once",
            file=sys.stderr,
            flush=True,
        )


def requeue() -> None:
    """Puts this Slurm job into the queue again; it then continues from its newest checkpoint."""
    job = os.environ["SLURM_JOB_ID"]
    if shutil.which("scontrol") is None:
        print(f"job {job} cannot be put into the queue again: no scontrol here", file=sys.stderr)
        return
    subprocess.run(["scontrol", "requeue", job], check=False)


@contextmanager
def stops_become_signals() -> Iterator[None]:
    """Tells the caller of a trainer which signal ended it.

    Raises:
        EndedBySignal: If one did.
        KeyboardInterrupt: After Ctrl-C outside the training steps, such as while data are read.
    """
    try:
        yield
    except TrainingStopped as stopped:
        raise EndedBySignal(stopped.number) from None
    except SystemExit as end:
        # Lightning's answer to an interrupt.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
