"""Benchmark rows: compared with eager, written one by one, with the memory of CUDA graphs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness import Comparison, timer
from benchmarks.results import append_rows, device_name
from tests.support.failing_writes import assert_a_failure_changes_nothing
from tests.support.memory import graph_pool_memory


def make_entry(implementation, median, group="focal_pool"):
    information = {"implementation": implementation, "peak_mib": 3.0, "least_seconds": None}
    stats = SimpleNamespace(median=median, iqr=0.1 * median)
    return SimpleNamespace(group=group, extra_info=information, stats=stats)


def ratios(rows):
    return {row["implementation"]: row["times_faster_than_eager"] for row in rows}


def test_a_row_is_complete_as_soon_as_its_baseline_is_known():
    comparison = Comparison()
    assert ratios(comparison.add(make_entry("native graph", 0.5))) == {}
    assert ratios(comparison.add(make_entry("eager", 4.0))) == {"eager": "1.00"}
    assert ratios(comparison.add(make_entry("native", 2.0))) == {"native": "2.00"}
    assert ratios(comparison.add(make_entry("native", 2.0, group="other case"))) == {}
    complete = comparison.add(make_entry("eager graph", 3.0))
    assert ratios(complete) == {"eager graph": "1.00", "native graph": "6.00"}


def test_memory_of_graphs_is_what_their_pools_hold():
    segments = [
        {"total_size": 5 * 2**20, "segment_pool_id": (0, 0)},
        {"total_size": 2 * 2**20, "segment_pool_id": (0, 1)},
        {"total_size": 2**19, "segment_pool_id": (3, 0)},
    ]
    assert graph_pool_memory(segments) == 2.5


def test_a_file_of_other_columns_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("VSS_COMMIT", "0123abc")
    path = tmp_path / "rows.csv"
    path.write_text("date,commit\n2026-01-01,abc\n")
    with pytest.raises(ValueError, match=r"rows.csv must have the columns date,commit,device"):
        append_rows(path, [{"operator": "focal_pool"}])
    assert path.read_text() == "date,commit\n2026-01-01,abc\n"


def test_rows_are_as_they_were_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("VSS_COMMIT", "0123abc")
    assert_a_failure_changes_nothing(
        lambda folder: append_rows(folder / "rows.csv", [{"operator": "focal_pool"}]),
        tmp_path,
        monkeypatch,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's time is that on the clock")
def test_rows_of_cpu_time_stand_apart(monkeypatch):
    usual = device_name()
    monkeypatch.setenv("VSS_BENCHMARKS_CPU_TIME", "1")
    assert device_name() == f"{usual}, CPU time"
    before = timer()
    time.sleep(0.3)
    assert timer() - before < 0.2
    monkeypatch.delenv("VSS_BENCHMARKS_CPU_TIME")
    before = timer()
    time.sleep(0.3)
    assert timer() - before >= 0.3


def test_every_benchmark_of_a_gpu_runs_dry_and_writes_its_row_at_once(tmp_path):
    path = tmp_path / "rows.csv"
    # Under pytest-xdist nothing is measured, and the new process would think it runs under it.
    outside = {name: value for name, value in os.environ.items() if "PYTEST_XDIST" not in name}
    environment = {**outside, "VSS_BENCHMARKS_DRY_RUN": "1", "VSS_COMMIT": "0123abc"}
    files = sorted(str(file) for file in Path(__file__).parent.glob("bench_*.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", *files]
    result = subprocess.run(
        [*command, "--results", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    with path.open() as file:
        rows = list(csv.DictReader(file))
    passed = int(result.stdout.split(" passed")[0].split()[-1])
    assert len(rows) == passed
    assert {row["device"] for row in rows} == {"dry run"}
    implementations = {row["implementation"] for row in rows}
    assert {"eager", "compiled", "native graph", "triton graph", "fused cuda-graph"} <= (
        implementations
    )
