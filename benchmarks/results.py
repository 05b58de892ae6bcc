"""The CSV files of benchmark rows: one row an implementation, with what it was measured on."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from vss_models.atomic import atomic_write

COLUMNS = (
    "date", "commit", "device", "driver", "torch", "triton", "operator", "case", "dtype", "mode",
    "implementation", "times_faster_than_eager", "spread", "peak_mib", "fraction_of_floor",
    "median_ms",
)  # fmt: skip


def counts_cpu_time() -> bool:
    """Whether ``VSS_BENCHMARKS_CPU_TIME=1`` asks for the CPU time of all threads.

    That is for a machine that others use too, where the time on the clock says more about them.
    """
    return os.environ.get("VSS_BENCHMARKS_CPU_TIME") == "1" and not torch.cuda.is_available()


def device_name() -> str:
    """Returns the GPU's name, or the CPU's kind and thread count, and how it was used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    isa = os.environ.get("VSS_KERNELS_ISA", "")
    name = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    return name + (f", {isa}" if isa else "") + (", CPU time" if counts_cpu_time() else "")


def driver_version() -> str:
    """Returns the version of the GPU's driver; an empty text where there is none to ask."""
    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip().partition("\n")[0] if result.returncode == 0 else ""


def commit() -> str:
    """Returns the checkout's short commit, with ``+`` if more than rows is uncommitted.

    ``VSS_COMMIT`` overrides it, for a copy of the sources on a machine without git.

    Raises:
        RuntimeError: if neither says what is measured.
    """
    given = os.environ.get("VSS_COMMIT")
    if given:
        return given
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        return result.stdout.strip()

    head = git("rev-parse", "--short", "HEAD") if shutil.which("git") else ""
    if not head:
        raise RuntimeError(
            "cannot tell which commit is measured: there is no git checkout here; "
            "set VSS_COMMIT to the commit of these sources"
        )
    changed = git("status", "--porcelain", "--", ":/", ":!results")
    return head + ("+" if changed else "")


def machine() -> dict[str, object]:
    """Returns the columns that say when, where and on which sources rows are measured.

    Raises:
        RuntimeError: As for :func:`commit`.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": device_name(),
        "driver": driver_version(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
    }


def append_rows(
    path: Path, rows: Sequence[dict[str, object]], measured_on: dict[str, object] | None = None
) -> None:
    """Appends rows to a CSV file through a temporary file, so that it is never half written.

    Args:
        path: The file; it is made if it does not exist.
        rows: The other columns.
        measured_on: Result of :func:`machine`, which is asked if this is not given.

    Raises:
        RuntimeError: As for :func:`commit`.
        ValueError: The file has other columns.
    """
    measured_on = machine() if measured_on is None else measured_on
    header = ",".join(COLUMNS)
    existing = path.read_text() if path.exists() else header + "\n"
    if existing.partition("\n")[0] != header:
        raise ValueError(f"{path} must have the columns {header}; move it away to begin a new one")
    path.parent.mkdir(parents=True, exist_ok=True)
    # On the disk before it is named, as always: a borrowed machine may go away at any time.
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        file.write(existing)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writerows({**measured_on, **row} for row in rows)
