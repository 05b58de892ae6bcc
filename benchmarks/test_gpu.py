"""The run on a GPU: dry, and what becomes of steps that fail, crash or take too long."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import parts, profile, smoke
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.build import strip
from benchmarks.gpu.steps import ROOT, SKIPPED, Log, Step, run_steps
from benchmarks.smallest import CASES
from vss_kernels._runtime import backends, native

NCU_OUTPUT = """==PROF== Connected to process 123
focal_pool | running
"ID","Process ID","Kernel Name","Context","Metric Name","Metric Unit","Metric Value"
"0","9","void vss::run_blocks<256, vss::(anonymous namespace)::PoolCell<float>>(PoolCell<float>, long)","1","gpu__time_duration.sum","us","6.1"
"0","9","void vss::run_blocks<256, vss::(anonymous namespace)::PoolCell<float>>(PoolCell<float>, long)","1","launch__registers_per_thread","register/thread","57"
"0","9","void vss::run_blocks<256, vss::(anonymous namespace)::PoolCell<float>>(PoolCell<float>, long)","1","not__asked_for","","1"
"1","9","sum_kernel","1","gpu__time_duration.sum","us","2"
==PROF== Disconnected
"""  # noqa: E501


def python(code: str, name: str = "step", **arguments) -> Step:
    return Step(name, [sys.executable, "-c", code], **arguments)


def run(tmp_path, *steps: Step, seconds: float = 60, at_a_time: int = 1):
    log = Log(tmp_path / "gpu.log")
    outcomes = run_steps(steps, log, time.monotonic() + seconds, at_a_time)
    log.close()
    return outcomes, (tmp_path / "gpu.log").read_text()


def test_a_step_that_crashes_or_fails_ends_no_other(tmp_path):
    outcomes, log = run(
        tmp_path,
        python("import os, signal; print('before'); os.kill(os.getpid(), signal.SIGSEGV)"),
        python("raise SystemExit(3)"),
        python(f"print('no such tool'); raise SystemExit({SKIPPED})"),
        python("import os; print(os.environ['WHERE'])", environment={"WHERE": "on a GPU"}),
    )
    assert [outcome.status for outcome in outcomes] == [
        "crashed: SIGSEGV",
        "failed: exit status 3",
        "skipped: no such tool",
        "passed",
    ]
    assert [outcome.acceptable for outcome in outcomes] == [False, False, True, True]
    assert "before\n" in log
    assert "on a GPU\n" in log


def test_a_step_and_what_it_started_end_with_its_time(tmp_path):
    child = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys; print('working', flush=True); "
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    start = time.monotonic()
    outcomes, log = run(tmp_path, python(code, seconds=3), python("print('next')"))
    assert time.monotonic() - start < 50
    assert [outcome.status for outcome in outcomes] == ["out of time after 3 s", "passed"]
    assert "working\n" in log
    assert "next\n" in log


def test_steps_that_the_parts_time_does_not_reach_are_named(tmp_path):
    outcomes, _ = run(tmp_path, python("print(1)", "late"), seconds=-1)
    assert [outcome.status for outcome in outcomes] == ["not run: the part's time was over"]
    assert not outcomes[0].acceptable


def test_lines_of_steps_at_the_same_time_are_whole(tmp_path):
    steps = [python(f"print('{letter}' * 50)") for letter in "abcd"]
    _, log = run(tmp_path, *steps, at_a_time=4)
    assert {letter * 50 for letter in "abcd"} <= set(log.splitlines())


def test_every_part_runs_dry(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--results", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    summary = result.stdout.partition("==== how each step ended")[2]
    assert result.returncode == 0, summary + result.stderr[-2000:]
    for part in parts.PARTS:
        assert f"\n{part}: " in summary
    for operator in CASES:
        assert f"smoke: {operator}: passed" in summary
        assert f"profile: {operator}: passed" in summary
    assert summary in (tmp_path / "gpu.log").read_text()


def test_every_operator_is_in_the_parts():
    assert set(CASES) == set(backends.operators()) == set(profile.WORK)
    for operator in parts.native_operators():
        assert parts.test_files(operator)


def test_timed_benchmarks_are_there():
    files = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert set(parts.TIMED) <= files


def test_smoke_sees_a_wrong_result(monkeypatch, capsys):
    operator = backends.operators()["attend_selected"]
    right = operator.implementations[-1]
    assert right.backend == "eager"
    wrong = backends.Implementation(
        "native", lambda *tensors: right.run(*tensors) * 1.01, right.can_run, right.available
    )
    monkeypatch.setattr(operator, "implementations", (wrong, right))
    assert not smoke.check_all("attend_selected")
    assert "attend_selected | native | float32 | result: 1.0e-02" in capsys.readouterr().out
    monkeypatch.setattr(smoke, "DTYPES", (torch.float32,))
    exact = backends.Implementation("native", right.run, right.can_run, right.available)
    monkeypatch.setattr(operator, "implementations", (exact, right))
    assert smoke.check_all("attend_selected")


def test_counters_become_a_line_for_each_kernel():
    assert profile.kernel_lines(NCU_OUTPUT) == [
        "run_blocks<256, PoolCell<float>>: time 6.1 us, registers 57 register/thread",
        "sum_kernel: time 2 us",
    ]
    with pytest.raises(ValueError, match="no table of counters"):
        profile.kernel_lines("==ERROR== ERR_NVGPUCTRPERM")


@pytest.mark.skipif(shutil.which("strip") is None, reason="strip is not installed")
@pytest.mark.skipif(native.problem() is not None, reason="needs the native extension")
def test_a_stripped_extension_still_loads(tmp_path):
    (library,) = (ROOT / "vss_kernels").glob("_C*.so")
    copy = Path(shutil.copy(library, tmp_path))
    strip(copy)
    assert copy.stat().st_size <= library.stat().st_size
    assert list(tmp_path.iterdir()) == [copy]
    code = (
        "import importlib.util, sys, torch; "
        "spec = importlib.util.spec_from_file_location('_C', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "print(module.build_info()['cuda'] is not None)"
    )
    command = [sys.executable, "-c", code, str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "True\n", result.stderr


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["smoke", "speed"])
    assert end.value.code == 2
    assert "unknown part 'speed': choose from build, smoke" in capsys.readouterr().err


def test_steps_that_do_not_exist_are_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VSS_COMMIT", "0123abc")
    assert main(["smoke", "--only", "nothing", "--results", str(tmp_path)]) == 1
    assert "no step of this part has 'nothing' in its name" in capsys.readouterr().out


def test_a_run_that_could_not_name_its_commit_does_not_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VSS_COMMIT", raising=False)
    assert main(["smoke", "--results", str(tmp_path)]) == 2
    assert "set VSS_COMMIT to the commit of these sources" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
