"""Prints the table of targets: ``python -m benchmarks.gpu_model``, or ``make gpu-model``.

Exit status: 0 if all targets are met, 1 if one is missed, 2 if the table or the tools are at fault.
"""

from __future__ import annotations

import argparse
import functools
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_model.cubin import choose_kernel, parse_resources, read_cubin
from benchmarks.gpu_model.flow import flow_graph, main_loop, whole_kernel, work_path
from benchmarks.gpu_model.issue import (
    CLOCK_GHZ,
    MULTIPROCESSORS,
    SUBPARTITIONS,
    model_slot,
    occupancy,
    simulate,
)
from benchmarks.gpu_model.sass import disassemble
from benchmarks.gpu_model.targets import TARGETS, Part, Target
from benchmarks.gpu_model.tools import ROOT, ToolError, compile_cubin, cuda_source, included

ARCHITECTURE = "sm_90"
CUBINS = ROOT / "build" / "gpu_model"
CHANGED = "changed"
HEADINGS = (
    "kernel", "unit of work", "registers", "spilled bytes", "instructions a unit", "target",
    "simulated us", "target", "limit", "met?",
)  # fmt: skip


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


@functools.cache
def evaluate(part: Part, cubin: Path, log: str) -> Evaluation:
    """Runs the model on a kernel.

    Raises:
        ValueError: The table does not fit the kernel.
        ToolError: nvdisasm is missing or failed.
    """
    kernel = choose_kernel(read_cubin(cubin), part.kernel)
    resources = parse_resources(log)[kernel.name]
    function = disassemble(cubin, kernel)
    graph = flow_graph(function)
    if part.up is None:
        loop = whole_kernel(graph, function)
    else:
        loop = main_loop(graph, function, part.work, part.up)
    try:
        path = work_path(graph, function, loop, part.trips, part.path)
    except ValueError as error:
        raise ValueError(f"{kernel.short}: {error}") from error
    shared = part.shared_bytes + resources.shared_bytes
    fits = occupancy(resources.registers, part.threads, shared)
    slots = [model_slot(x, part.conflict) for x in path]
    warps, passes = fits.warps_per_subpartition, None  # of a sub-partition
    if part.blocks is not None:
        # The busiest multiprocessor decides, and a small launch fills none.
        of_a_launch = math.ceil(part.blocks / MULTIPROCESSORS) * part.threads / 32 / SUBPARTITIONS
        warps = min(warps, math.ceil(of_a_launch))
        if part.up is None:
            passes = of_a_launch  # a warp goes through its kernel once
    if part.units is not None:
        passes = part.units / part.units_per_pass / 32 / (MULTIPROCESSORS * SUBPARTITIONS)
    result = simulate(slots, warps, l1_hit=part.l1_hit)
    microseconds = None if passes is None else passes * result.cycles_per_pass / CLOCK_GHZ / 1000
    return Evaluation(
        resources.registers,
        resources.spilled_bytes,
        len(path) / part.units_per_pass,
        microseconds,
        result.limit,
    )


def is_met(target: Target, evaluations: Sequence[Evaluation]) -> bool:
    """Returns whether a target is met; spills miss it, and so does a time that is not known."""
    times = [evaluation.microseconds for evaluation in evaluations]
    known = [time for time in times if time is not None]
    return (
        not any(evaluation.spilled_bytes for evaluation in evaluations)
        and (target.instructions is None or evaluations[0].instructions <= target.instructions)
        and (
            target.microseconds is None
            or (len(known) == len(times) and sum(known) <= target.microseconds)
        )
    )


def row(target: Target, evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns a target's cells, in the order of :data:`HEADINGS`."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    times = [evaluation.microseconds for evaluation in evaluations]
    known = [time for time in times if time is not None]
    return [
        target.name,
        target.unit,
        str(max(evaluation.registers for evaluation in evaluations)),
        str(sum(evaluation.spilled_bytes for evaluation in evaluations)),
        number(evaluations[0].instructions, 1),
        number(target.instructions, 0),
        number(sum(known) if len(known) == len(times) else None, 0),
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


def changed_files(base: str) -> set[Path]:
    """Returns the files that differ from a commit, those that git does not know included.

    Raises:
        ToolError: git cannot tell.
    """
    paths: set[Path] = set()
    for command in (["diff", "--name-only", base], ["ls-files", "--others", "--exclude-standard"]):
        result = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise ToolError(f"git cannot say what changed since {base}: {result.stderr.strip()}")
        paths.update(ROOT / line for line in result.stdout.splitlines())
    return paths


def select(only: str, base: str) -> list[Target]:
    """Returns the targets that are asked for.

    Args:
        only: Part of their names, or "changed" for those whose sources changed.
        base: The commit since which they changed.

    Raises:
        ValueError: No name has this text.
    """
    if only == CHANGED:
        changed = changed_files(base)
        return [
            target
            for target in TARGETS
            if changed & set(included(cuda_source(target.operator, CUBINS)))
        ]
    found = [target for target in TARGETS if only in target.name]
    if not found:
        names = "\n".join(f"  {target.name}" for target in TARGETS)
        raise ValueError(f"no target has {only!r} in its name; there are:\n{names}")
    return found


def run(only: str, base: str) -> int:
    """Prints the table; returns the exit status."""
    rows, missed, notes = [], 0, []
    for target in select(only, base):
        print(f"modelling {target.name}", file=sys.stderr, flush=True)
        cubin, log = compile_cubin(cuda_source(target.operator, CUBINS), ARCHITECTURE, CUBINS)
        evaluations = [evaluate(part, cubin, log) for part in target.parts]
        rows.append(row(target, evaluations))
        missed += not is_met(target, evaluations)
        if target.note:
            notes.append(f"{target.name}: {target.note}.")
    if not rows:
        print("no CUDA source changed")
        return 0
    print(markdown(rows))
    print("\n" + "\n".join(["A model, not a measurement; main loops only.", *notes]))
    print(f"{missed} of {len(rows)} targets are missed.")
    return 1 if missed else 0


def main() -> int:
    """Reads the command line and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description=__doc__)
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help=f"targets whose name has this text, or {CHANGED!r}: those whose sources changed",
    )
    parser.add_argument("--base", default="HEAD", help="commit that sources are compared with")
    options = parser.parse_args()
    try:
        return run(options.only, options.base)
    except (ToolError, ValueError) as error:
        print(f"gpu_model: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
