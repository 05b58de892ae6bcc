"""The report of benchmark rows: what is kept, what is shown, and what is refused."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from benchmarks.report import read_rows, write_report
from benchmarks.results import COLUMNS, append_rows


def make_row(**values):
    row = dict.fromkeys(COLUMNS, "x") | {
        "device": "A CPU, 2 threads",
        "times_faster_than_eager": "2.50",
        "peak_mib": "3.0",
        "fraction_of_floor": "",
        "median_ms": "",
        "implementation": "native",
    }
    return row | values


def write_rows(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_the_last_of_equal_measurements_counts(tmp_path):
    path = tmp_path / "cpu.csv"
    write_rows(path, make_row(), make_row(mode="other"), make_row(times_faster_than_eager="9.00"))
    ratios = {row["mode"]: row["times_faster_than_eager"] for row in read_rows([path])}
    assert ratios == {"x": "9.00", "other": "2.50"}


def test_report_has_a_table_and_a_plot_for_each_device(tmp_path):
    write_rows(
        tmp_path / "rows.csv",
        make_row(operator="focal_pool"),
        make_row(operator="focal_pool", implementation="eager", times_faster_than_eager="1.00"),
        make_row(
            operator="focal_pool", device="GPU 1", median_ms="0.1250", fraction_of_floor="0.41"
        ),
    )
    text = write_report(tmp_path).read_text()
    assert text.count("### focal_pool") == 2
    assert text.count("Median ms") == 1
    assert text.count("| Of floor |") == 1
    assert "| 2.50 |" in text
    for image in ("a-cpu-2-threads.png", "gpu-1.png"):
        assert f"]({image})" in text
        assert (tmp_path / image).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="make bench"):
        write_report(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv must have the columns"):
        write_report(tmp_path)


def test_rows_name_the_given_commit_where_there_is_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VSS_COMMIT", "0123abc")
    append_rows(tmp_path / "rows.csv", [{"operator": "focal_pool"}])
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["commit"], row["operator"]) == ("0123abc", "focal_pool")


def test_rows_without_a_commit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VSS_COMMIT", raising=False)
    with pytest.raises(RuntimeError, match="set VSS_COMMIT"):
        append_rows(tmp_path / "rows.csv", [{"operator": "focal_pool"}])
    assert not (tmp_path / "rows.csv").exists()


def test_benchmarks_that_could_not_name_their_commit_end_before_they_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VSS_COMMIT", raising=False)
    benchmark = "benchmarks/bench_focal_pool.py"
    command = [sys.executable, "-m", "pytest", benchmark, "--results", str(tmp_path / "rows.csv")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: cannot tell which commit is measured" in result.stderr
    assert "INTERNALERROR" not in result.stdout + result.stderr
