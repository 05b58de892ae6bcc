"""Tables and plots of the benchmark rows: ``python -m benchmarks.report`` after ``make bench``.

Reads every CSV file of a folder and writes, beside them, README.md with a table for each machine
and operator, and one plot for each machine. Of rows that measure the same, the last one counts.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results import COLUMNS
from vss_models.atomic import atomic_write

Row = dict[str, str]
RESULTS = Path(__file__).parent / "results"
OTHERS = ("eager", "compiled")
SAME = ("device", "operator", "case", "dtype", "mode", "implementation")
INTRODUCTION = """# Measured

Written by `python -m benchmarks.report` from the CSV files in this folder, which `make bench`
extends; do not edit. "Times faster" compares medians with the eager implementation, measured
side by side in one run; graph replays are compared with the replay of eager. "Spread" is the
interquartile range over the median. Memory is the peak above what was allocated before. "Of floor"
is the least time the GPU could need, moving every input and result once at its measured copy rate
or doing the products at its measured matmul rate, over the median. A row exists only if the result
was checked in the same process.
"""


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """Reads rows, keeping the last of those that measure the same, in the order of the files.

    Raises:
        ValueError: If a file's columns are not those of the benchmarks.
    """
    latest: dict[tuple[str, ...], Row] = {}
    for path in paths:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(
                    f"{path} must have the columns {', '.join(COLUMNS)}, got {reader.fieldnames}; "
                    "only files that the benchmarks wrote can be reported"
                )
            for row in reader:
                latest[tuple(row[column] for column in SAME)] = row
    return list(latest.values())


def grouped(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    """Groups rows by a column, both in order of appearance."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return groups


def table(rows: Sequence[Row]) -> str:
    """One operator's rows as a Markdown table; absolute times only where there are any."""
    columns = {
        "case": "Case",
        "dtype": "Type",
        "mode": "Mode",
        "implementation": "Implementation",
        "times_faster_than_eager": "Times faster",
        "spread": "Spread",
        "peak_mib": "Peak MiB",
        "fraction_of_floor": "Of floor",
        "median_ms": "Median ms",
        "commit": "Commit",
    }
    for column in ("fraction_of_floor", "median_ms"):
        if not any(row[column] for row in rows):
            del columns[column]
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[row[column] for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws how many times faster than eager this project's best implementation of each case is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best: dict[str, float] = {}
    for row in rows:
        if not row["implementation"].startswith(OTHERS):
            label = f"{row['operator']}, {row['case']}, {row['dtype']}, {row['mode']}"
            best[label] = max(best.get(label, 0.0), float(row["times_faster_than_eager"]))
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(best)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(best), list(best.values()), color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than eager")
    axes.set_title(title)
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def write_report(folder: Path) -> Path:
    """Writes README.md and the plots beside a folder's CSV files; returns README.md's path.

    Raises:
        FileNotFoundError: If the folder holds no CSV file.
        ValueError: If a file's columns are not those of the benchmarks.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise FileNotFoundError(f"no CSV files in {folder}; run `make bench` first")
    parts = [INTRODUCTION]
    for device, of_device in grouped(read_rows(paths), "device").items():
        image = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".png"
        plot(of_device, device, folder / image)
        versions = sorted({f"torch {row['torch']}, triton {row['triton']}" for row in of_device})
        parts.append(f"## {device}\n\n{'; '.join(versions)}\n\n![Times faster]({image})\n")
        for operator, of_operator in grouped(of_device, "operator").items():
            parts.append(f"### {operator}\n\n{table(of_operator)}")
    readme = folder / "README.md"
    with atomic_write(readme) as temporary:
        temporary.write_text("\n".join(parts))
    return readme


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the CSV files are")
    print(write_report(parser.parse_args().folder))
