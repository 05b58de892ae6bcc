"""Steps of a part: each a process of its own, whose lines reach the disk as they are printed."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKIPPED = 77
"""Exit status of a step that cannot run here; its last line says why."""


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: What the summary calls it.
        command: Program and arguments; it runs in the checkout.
        environment: Variables beside those of this process.
        seconds: How long it may take at most, within what is left to its part.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = float("inf")


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        step: Its name.
        status: "passed", "skipped: why", or what went wrong.
        seconds: How long it ran.
    """

    step: str
    status: str
    seconds: float = 0.0

    @property
    def acceptable(self) -> bool:
        """Whether nothing went wrong."""
        return self.status == "passed" or self.status.startswith("skipped")


class Log:
    """Prints lines and appends them to a file, each on the disk before the next.

    A borrowed machine may go away at any time, and with it what was not yet written.

    Args:
        path: The file; it is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Prints and appends a line; steps that run at the same time may call this."""
        with self._lock:
            print(line, flush=True)
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


_running: set[int] = set()
"""The process groups of the steps that are running."""


def end_running_steps(number: int, frame: object) -> None:
    """Ends all steps and this process: a handler of signals."""
    for group in list(_running):
        os.killpg(group, signal.SIGKILL)
    os._exit(128 + number)


def run_step(step: Step, log: Log, deadline: float) -> Outcome:
    """Runs a step to its end, or to the end of its time.

    Args:
        step: The step.
        log: Takes its lines.
        deadline: When its part must have ended, on the clock of :func:`time.monotonic`.
    """
    start = time.monotonic()
    seconds = min(step.seconds, deadline - start)
    if seconds <= 0:
        return Outcome(step.name, "not run: the part's time was over")
    log.write(f"== {step.name}: {' '.join(step.command)}")
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own processes end with it
    )
    expired = threading.Event()

    def end() -> None:
        expired.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    _running.add(process.pid)
    line = ""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            log.write(line.rstrip())
    code = process.wait()
    _running.discard(process.pid)
    timer.cancel()
    if expired.is_set():
        status = f"out of time after {seconds:.0f} s"
    elif code == SKIPPED:
        status = f"skipped: {line.strip()}"
    elif code < 0:
        status = f"crashed: {signal.Signals(-code).name}"
    else:
        status = "passed" if code == 0 else f"failed: exit status {code}"
    outcome = Outcome(step.name, status, time.monotonic() - start)
    log.write(f"== {step.name}: {outcome.status} ({outcome.seconds:.0f} s)")
    return outcome


def run_here(step: Step, log: Log) -> Outcome:
    """Runs the Python module of a step in this process, for a dry run: nothing starts anew."""
    start = time.monotonic()
    log.write(f"== {step.name}: {' '.join(step.command)}")
    option, module, *arguments = step.command[1:]
    assert option == "-m", step
    before, sys.argv = sys.argv, [module, *arguments]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    status = "passed" if code in (0, None) else f"failed: exit status {int(str(code))}"
    outcome = Outcome(step.name, status, time.monotonic() - start)
    log.write(f"== {step.name}: {outcome.status} ({outcome.seconds:.0f} s)")
    return outcome


def run_steps(
    steps: Sequence[Step], log: Log, deadline: float, at_a_time: int = 1
) -> list[Outcome]:
    """Runs steps, each whatever became of the others; returns how they ended, in order.

    Args:
        steps: The steps.
        log: Takes their lines.
        deadline: As for :func:`run_step`.
        at_a_time: How many may run at the same time.
    """
    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(lambda step: run_step(step, log, deadline), steps))
