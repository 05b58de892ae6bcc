"""How the `vss` commands end when something is wrong: one line for an error, one for a signal."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class EndedBySignal(KeyboardInterrupt):
    """The process was told to end; raised where Ctrl-C would raise a KeyboardInterrupt.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line; the usage would be dozens before it."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        end_with_usage_error(self.prog, message)


def end_with_usage_error(program: str, message: str) -> NoReturn:
    """Ends the process, whose options are not valid.

    Args:
        program: The command, such as "vss fit".
        message: What is wrong.

    Raises:
        SystemExit: Always, with status 2.
    """
    line = " ".join(message.split())
    print(f"{program}: {line} (`{program} --help` has the options)", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP interrupt like Ctrl-C, so that what was begun can be completed.

    Raises:
        EndedBySignal: When one of them comes.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise EndedBySignal(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def describe(error: Exception) -> str:
    """Returns what to tell the user about an error: its message, without Python's trimmings."""
    if isinstance(error, OSError) and error.strerror is not None:
        named = [str(file) for file in (error.filename, error.filename2) if file is not None]
        return ": ".join([*named, error.strerror])
    message = _message(error)
    if isinstance(error, MemoryError) or re.search(r"not enough memory|can't allocate", message):
        return f"not enough memory ({message.splitlines()[0]})" if message else "not enough memory"
    if type(error).__module__ in ("builtins", "torch") and isinstance(error, RuntimeError):
        # PyTorch appends where in its own source the error arose.
        message = message.split("\nException raised from ")[0].strip()
    return message or type(error).__name__


def _message(error: Exception) -> str:
    """The message alone; a data loader's worker wraps it in its own traceback."""
    text = str(error).strip()
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return text
    return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]


__all__ = [
    "CommandParser",
    "EndedBySignal",
    "describe",
    "end_with_usage_error",
    "signals_interrupt",
]
