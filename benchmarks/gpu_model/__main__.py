"""Prints the table of targets: ``python -m benchmarks.gpu_model``, or ``make gpu-model``.

Exit status: 0 if all targets are met, 1 if one is missed, 2 if the table or the tools are at fault.
``--record`` compares with an earlier table instead: ``make gpu-model-changed``, which CI runs.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu_model.changes import (
    BASE_VARIABLE,
    RECENT_COMMITS,
    changed_files,
    default_base,
)
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
from benchmarks.gpu_model.table import Evaluation, is_met, markdown, read_markdown, regression, row
from benchmarks.gpu_model.targets import TARGETS, Part, Target
from benchmarks.gpu_model.tools import (
    ROOT,
    ToolError,
    compile_cubin,
    cuda_source,
    find_tool,
    included,
)

ARCHITECTURE = "sm_90"
CUBINS = ROOT / "build" / "gpu_model"
MODEL = ROOT / "benchmarks" / "gpu_model"
CHANGED = "changed"


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


def select(only: str, base: str | None) -> list[Target]:
    """Returns the targets that are asked for.

    Args:
        only: Part of their names, or "changed" for those whose sources changed. Where the model or
            its table changed, that is all of them.
        base: The commit since which they changed; None for :func:`default_base`.

    Raises:
        ValueError: No name has this text.
        ToolError: git cannot say what changed since ``base``.
    """
    if only == CHANGED:
        base = base or default_base()
        if base is None:
            print("git cannot tell what changed here: all rows", file=sys.stderr)
            return list(TARGETS)
        print(f"what changed since {base}", file=sys.stderr)
        changed = changed_files(base)
        if any(path.parent == MODEL and path.name != "nvcc_check.py" for path in changed):
            return list(TARGETS)
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


def compile_operators(targets: Sequence[Target]) -> dict[str, tuple[Path, str]]:
    """Compiles the operators of targets, as many at a time as there are cores.

    Returns:
        For each operator its cubin and what ptxas said, see :func:`compile_cubin`.

    Raises:
        ToolError: nvcc is missing or failed.
    """
    operators = list(dict.fromkeys(target.operator for target in targets))

    def compile_one(operator: str) -> tuple[Path, str]:
        return compile_cubin(cuda_source(operator, CUBINS), ARCHITECTURE, CUBINS)

    print(f"compiling {', '.join(operators)}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(operators, pool.map(compile_one, operators), strict=True))


def run(only: str, base: str | None = None, record: Path | None = None) -> int:
    """Prints the table; returns the exit status.

    Args:
        only: See :func:`select`.
        base: See :func:`select`.
        record: A page with a table. Then rows must not be worse than there, instead of meeting
            their targets.

    Raises:
        ValueError: The table does not fit the sources, or there is none on the page.
        ToolError: A tool is missing or failed.
    """
    recorded = None if record is None else read_markdown(record.read_text())
    targets = select(only, base)
    if not targets:
        print("no CUDA source changed")
        return 0
    rows, missed, worse, notes = [], 0, [], []
    compiled = compile_operators(targets)
    for target in targets:
        print(f"modelling {target.name}", file=sys.stderr, flush=True)
        evaluations = [evaluate(part, *compiled[target.operator]) for part in target.parts]
        rows.append(row(target, evaluations))
        missed += not is_met(target, evaluations)
        if target.note:
            notes.append(f"{target.name}: {target.note}.")
        if recorded is not None:
            problem = regression(rows[-1], recorded)
            if problem is not None:
                worse.append(problem)
            elif rows[-1] != recorded.get(target.name):
                notes.append(f"{target.name}: not as on record; give {record} this row.")
    print(markdown(rows))
    print("\n" + "\n".join(["A model, not a measurement; main loops only.", *notes]))
    print(f"{missed} of {len(rows)} targets are missed.")
    if recorded is None:
        return 1 if missed else 0
    print("\n".join(worse) or "No row is worse than on record.")
    return 1 if worse else 0


def main() -> int:
    """Reads the command line and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description=__doc__)
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help=f"targets whose name has this text, or {CHANGED!r}: those whose sources changed",
    )
    parser.add_argument(
        "--base",
        metavar="COMMIT",
        help=f"what {CHANGED!r} compares with (default: ${BASE_VARIABLE}, else where the branch "
        f"left origin's main branch, else {RECENT_COMMITS} commits ago)",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="PAGE",
        help="a page with a table that rows must not be worse than, instead of meeting their "
        "targets; without nvcc nothing is done",
    )
    options = parser.parse_args()
    try:
        if options.record is not None:
            try:
                find_tool("nvcc")
            except ToolError as error:
                print(f"skipped whether the CUDA operators keep their modelled times: {error}")
                return 0
        return run(options.only, options.base, options.record)
    except (OSError, ToolError, ValueError) as error:
        print(f"gpu_model: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
