"""The table of what the model says: its rows, and whether they are worse than those on record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu_model.targets import Target

HEADINGS = (
    "kernel", "unit of work", "registers", "spilled bytes", "instructions a unit", "target",
    "simulated us", "target", "limit", "met?",
)  # fmt: skip
# Places in a row.
NAME, SPILLED, MET = 0, 3, 9
INSTRUCTIONS, MOST_INSTRUCTIONS, MICROSECONDS, MOST_MICROSECONDS = 4, 5, 6, 7
UNKNOWN = "-"


@dataclass(frozen=True)
class Evaluation:
    """What the model says of a kernel.

    Attributes:
        registers: Of a thread.
        spilled_bytes: Stored and loaded for want of registers.
        instructions: For a unit of work.
        microseconds: Of the launch; None where it is not modelled.
        limit: What limits the loop.
    """

    registers: int
    spilled_bytes: int
    instructions: float
    microseconds: float | None
    limit: str


def total_microseconds(evaluations: Sequence[Evaluation]) -> float | None:
    """Returns the time of all launches together; None where one is not known."""
    known = [one.microseconds for one in evaluations if one.microseconds is not None]
    return sum(known) if len(known) == len(evaluations) else None


def is_met(target: Target, evaluations: Sequence[Evaluation]) -> bool:
    """Returns whether a target is met; spills miss it, and so does a time that is not known."""
    time = total_microseconds(evaluations)
    return (
        not any(evaluation.spilled_bytes for evaluation in evaluations)
        and (target.instructions is None or evaluations[0].instructions <= target.instructions)
        and (target.microseconds is None or (time is not None and time <= target.microseconds))
    )


def row(target: Target, evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns a target's cells, in the order of :data:`HEADINGS`."""

    def number(value: float | None, digits: int) -> str:
        return UNKNOWN if value is None else f"{value:.{digits}f}"

    return [
        target.name,
        target.unit,
        str(max(evaluation.registers for evaluation in evaluations)),
        str(sum(evaluation.spilled_bytes for evaluation in evaluations)),
        number(evaluations[0].instructions, 1),
        number(target.instructions, 0),
        number(total_microseconds(evaluations), 0),
        number(target.microseconds, 0),
        evaluations[0].limit,
        "yes" if is_met(target, evaluations) else "no",
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as a Markdown table whose columns line up."""
    lines = [list(HEADINGS), ["-" * 3] * len(HEADINGS), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    padded = [[cell.ljust(n) for cell, n in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def read_markdown(text: str) -> dict[str, list[str]]:
    """Returns the rows of the table that a Markdown page holds, by their names.

    Args:
        text: The page, with a table that :func:`markdown` made.

    Raises:
        ValueError: It has no such table, or a row does not fit the headings.
    """
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    if list(HEADINGS) not in lines:
        raise ValueError("the page has no table with the headings " + " | ".join(HEADINGS))
    first = lines.index(list(HEADINGS)) + 2  # behind the headings and the line below them
    rows: dict[str, list[str]] = {}
    for cells in lines[first:]:
        if cells == [""]:
            break
        if len(cells) != len(HEADINGS):
            raise ValueError(f"a row has {len(cells)} cells for {len(HEADINGS)} headings: {cells}")
        rows[cells[NAME]] = cells
    return rows


def regression(now: Sequence[str], recorded: Mapping[str, Sequence[str]]) -> str | None:
    """Returns how a row is worse than the one on record, or None.

    A row that met its targets, and one that is not on record, must meet them; one that missed them
    must not get worse: spill more, or take more of what has a target. Numbers are compared as they
    are printed.

    Args:
        now: The row's cells.
        recorded: The rows on record, by their names.

    Raises:
        ValueError: A number on record is none.
    """
    if now[MET] == "yes":
        return None
    before = recorded.get(now[NAME])
    if before is None:
        return f"{now[NAME]}: misses its targets, and is not on record"
    if before[MET] == "yes":
        return f"{now[NAME]}: misses its targets, which it met"

    def number(cell: str) -> float:
        return math.inf if cell == UNKNOWN else float(cell)

    places = [SPILLED]
    if now[MOST_INSTRUCTIONS] != UNKNOWN:
        places.append(INSTRUCTIONS)
    if now[MOST_MICROSECONDS] != UNKNOWN:
        places.append(MICROSECONDS)
    for place in places:
        if number(now[place]) > number(before[place]):
            return f"{now[NAME]}: {HEADINGS[place]} {now[place]}, up from {before[place]}"
    return None
