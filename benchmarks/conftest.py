"""The benchmark fixture and where its rows go.

A benchmark is one (operator, case, dtype, mode, implementation). Rows that differ only in the
implementation are measured in one run and compared with eager; the comparison is what is kept.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import Measure, rows_of
from benchmarks.results import append_rows, commit


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vss-kernels benchmarks")
    group.addoption(
        "--results",
        type=Path,
        default=None,
        help="append the comparison with eager to this CSV file",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuses rows that could not name their commit before anything is measured."""
    if session.config.getoption("--results") is not None:
        try:
            commit()
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.fixture
def measure(benchmark, request) -> Measure:
    """Times one implementation of an operator after checking its result."""
    return Measure(benchmark, request.node.name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the rows of the benchmarks that passed their check and ran to their end."""
    path = session.config.getoption("--results")
    benchmarks = getattr(session.config, "_benchmarksession", None)
    if path is None or benchmarks is None:
        return
    rows = rows_of([entry for entry in benchmarks.benchmarks if not entry.has_error])
    if rows:
        append_rows(path, rows)
