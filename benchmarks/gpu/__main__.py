"""Runs parts and says how each step ended: ``python -m benchmarks.gpu --help``, or ``.ci/gpu``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.parts import PARTS, Setting
from benchmarks.gpu.steps import Log, Outcome, end_running_steps, run_here, run_steps
from benchmarks.results import machine

MINUTES_ALONE = 8.0
RESULTS = Path(__file__).parents[1] / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=".ci/gpu",
        description="What only a GPU can show. Parts, in the order in which they run if none is "
        f"named: {', '.join(PARTS)}. All of them end within half an hour, one that is named within "
        "eight minutes. Every line and every row is on the disk as soon as it is known.",
    )
    parser.add_argument("part", nargs="*", help="parts to run, in this order")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of rows and log")
    parser.add_argument("--only", default="", metavar="TEXT", help="steps whose name has this text")
    parser.add_argument("--minutes", type=float, help="most minutes of each part that is named")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="on a CPU, in one process: tiny sizes, tests and benchmarks only collected",
    )
    options = parser.parse_args(arguments)
    unknown = [part for part in options.part if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return options


def run_part(name: str, setting: Setting, log: Log, minutes: float) -> list[Outcome]:
    """Runs a part's steps; returns how they ended."""
    part = PARTS[name]
    log.write(f"==== {name}: at most {minutes:.1f} minutes")
    steps = [step for step in part.steps(setting) if setting.only in step.name]
    if not steps:
        return [Outcome(name, f"failed: no step of this part has {setting.only!r} in its name")]
    if setting.dry_run:
        outcomes = [run_here(step, log) for step in steps]
    else:
        outcomes = run_steps(steps, log, time.monotonic() + 60 * minutes, part.at_a_time)
    return [replace(outcome, step=f"{name}: {outcome.step}") for outcome in outcomes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts on the command line; returns the exit status."""
    options = parse(arguments)
    if options.dry_run:
        os.environ["VSS_BENCHMARKS_DRY_RUN"] = "1"  # before the benchmarks are imported
    setting = Setting(options.results.resolve(), options.dry_run, options.only)
    try:
        measured_on = machine()
    except RuntimeError as error:
        print(f".ci/gpu: {error}", file=sys.stderr)
        return 2
    log = Log(setting.results / "gpu.log")
    try:
        log.write(
            f"==== {measured_on['date']}, commit {measured_on['commit']}, {measured_on['device']}, "
            f"driver {measured_on['driver'] or 'none'}"
        )
        outcomes: list[Outcome] = []
        left_over = 0.0  # minutes of earlier parts
        for name in options.part or PARTS:
            planned = PARTS[name].minutes + left_over
            minutes = min(MINUTES_ALONE, planned) if not options.part else MINUTES_ALONE
            start = time.monotonic()
            outcomes += run_part(name, setting, log, options.minutes or minutes)
            left_over = max(0.0, planned - (time.monotonic() - start) / 60)
        log.write("==== how each step ended")
        for outcome in outcomes:
            log.write(f"{outcome.step}: {outcome.status} ({outcome.seconds:.0f} s)")
    finally:
        log.close()
    return 0 if all(outcome.acceptable for outcome in outcomes) else 1


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_running_steps)
    raise SystemExit(main())
