"""The benchmark fixture and where its rows go.

A benchmark is one (operator, case, dtype, mode, implementation). Rows that differ only in the
implementation are measured in one run and compared with eager; the comparison is what is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import DRY_RUN, Comparison, Measure
from benchmarks.results import append_rows, machine


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vss-kernels benchmarks")
    group.addoption(
        "--results",
        type=Path,
        default=None,
        help="append the comparison with eager to this CSV file",
    )


class RowWriter:
    """Prints and writes each row as soon as it is known: a borrowed machine may go away any time.

    Only benchmarks that passed their check and ran to their end have rows.
    """

    def __init__(self, config: pytest.Config, path: Path, measured_on: dict[str, object]) -> None:
        self.config = config
        self.path = path
        self.measured_on = measured_on
        self.comparison = Comparison()
        self.seen = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes what pytest-benchmark has measured since the last call."""
        session: Any = getattr(self.config, "_benchmarksession", None)
        if report.when != "teardown" or session is None:
            return
        new = session.benchmarks[self.seen :]
        self.seen += len(new)
        rows = [row for entry in new if not entry.has_error for row in self.comparison.add(entry)]
        for row in rows:
            print("\n" + described(row), end="", flush=True)
        if rows:
            append_rows(self.path, rows, self.measured_on)


def described(row: dict[str, object]) -> str:
    """Returns a row as a line to read."""
    what = " | ".join(str(row[name]) for name in ("operator", "case", "dtype", "mode"))
    time = f"{row['median_ms']} ms, " if row["median_ms"] else ""
    return (
        f"{what} | {row['implementation']}: {time}{row['times_faster_than_eager']} times faster, "
        f"{row['peak_mib']} MiB"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuses rows that could not name their commit before anything is measured."""
    path = session.config.getoption("--results")
    if path is None:
        return
    try:
        measured_on = machine()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from error
    if DRY_RUN:
        measured_on["device"] = "dry run"
    session.config.pluginmanager.register(RowWriter(session.config, path, measured_on))


@pytest.hookimpl(trylast=True)  # of the benchmarks that -k selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves one case of each benchmark, mode and implementation to a dry run."""
    if not DRY_RUN:
        return
    kept: dict[tuple[object, ...], pytest.Item] = {}
    for item in items:
        arguments = getattr(item, "callspec", None)
        chosen = {} if arguments is None else arguments.params
        key = (item.nodeid.partition("[")[0], chosen.get("mode"), chosen.get("implementation"))
        kept.setdefault(key, item)
    left_out = [item for item in items if item not in kept.values()]
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept.values()


@pytest.fixture
def measure(benchmark) -> Measure:
    """Times one implementation of an operator after checking its result."""
    return Measure(benchmark)
