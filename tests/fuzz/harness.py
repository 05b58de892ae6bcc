"""Runs malformed inputs one by one and judges how each ended."""

from __future__ import annotations

import contextlib
import io
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NamedTuple

from vss_kernels import BackendError
from vss_models.checkpoints import CheckpointError
from vss_models.cli import main
from vss_models.video import VideoError

PATIENCE = 60
"""Seconds after which an input counts as a hang; the slowest takes about two."""

RIGHT, CLEAR = "right answer", "clear error"
WRONG, UNCLEAR, TRACEBACK, HANG = "wrong answer", "unclear error", "traceback", "hang"
OUTCOMES = (RIGHT, CLEAR, WRONG, UNCLEAR, TRACEBACK, HANG)


class CommandError(Exception):
    """A command ended with a message and an exit status above 0."""


EXPECTED = (
    ValueError,
    TypeError,
    OSError,
    VideoError,
    CheckpointError,
    BackendError,
    CommandError,
)
"""Errors by which this package refuses an input."""


class Case(NamedTuple):
    """One input.

    Attributes:
        name: What is wrong with it.
        run: Uses it. Returns if the answer is right, raises AssertionError if it is wrong.
        clues: An error must mention one of these, such as the name of the file.
    """

    name: str
    run: Callable[[], object]
    clues: tuple[str, ...]


class Judgement(NamedTuple):
    """How a case ended, and why that is a defect, if it is one."""

    outcome: str
    report: str


class _Hung(BaseException):
    pass


def judge(case: Case, patience: int = PATIENCE) -> Judgement:
    """Runs a case and says how it ended."""
    try:
        with _alarm(patience):
            case.run()
    except AssertionError as error:
        return Judgement(WRONG, f"{case.name}: {error}")
    except EXPECTED as error:
        message = str(error)
        if any(clue in message for clue in case.clues):
            return Judgement(CLEAR, "")
        return Judgement(
            UNCLEAR,
            f"{case.name}: {type(error).__name__}: {message[:300]!r} names none of {case.clues}",
        )
    except _Hung:
        return Judgement(HANG, f"{case.name}: still running after {patience} s")
    except (Exception, SystemExit):
        return Judgement(TRACEBACK, f"{case.name}: {traceback.format_exc(limit=-4)}")
    return Judgement(RIGHT, "")


def judge_all(cases: Iterable[Case]) -> tuple[Counter[str], list[str]]:
    """Runs cases; returns how many ended how, and the reports of the defects."""
    counts: Counter[str] = Counter()
    reports = []
    for case in cases:
        judgement = judge(case)
        counts[judgement.outcome] += 1
        if judgement.outcome not in (RIGHT, CLEAR):
            reports.append(f"{judgement.outcome}: {judgement.report}")
    return counts, reports


def command(arguments: list[str]) -> None:
    """Runs `vss`; returns after success.

    Raises:
        CommandError: With the message, after exit status 1 or 2.
        AssertionError: Another exit status.
    """
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    if status == 0:
        return
    assert status in (1, 2), f"exit status {status}"
    text = errors.getvalue()
    assert "Traceback" not in text, text[-2000:]
    raise CommandError(text)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def table(counts: dict[str, Counter[str]]) -> str:
    """Writes the counts of each area as lines of text."""
    width = max(len(area) for area in (*counts, "total"))
    total: Counter[str] = sum(counts.values(), Counter())
    lines = [" " * width + "".join(f"  {outcome:>13}" for outcome in ("inputs", *OUTCOMES))]
    for area, ended in (*counts.items(), ("total", total)):
        numbers = (ended.total(), *(ended[outcome] for outcome in OUTCOMES))
        lines.append(f"{area:{width}}" + "".join(f"  {number:13}" for number in numbers))
    return "\n".join(lines)
