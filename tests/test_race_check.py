"""The race check of the GPU's block programs finds what it is there to find."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX", "c++")
FLAGS = ["-std=c++20", "-O1", "-pthread", "-fsanitize=thread", "-DVSS_RACE_CHECK"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs a C++ compiler; {COMPILER!r} is not on PATH")
    folder = tmp_path_factory.mktemp("race_check")
    (folder / "empty.cpp").write_text("int main() {}\n")
    probe = [COMPILER, *FLAGS, str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{COMPILER!r} has no ThreadSanitizer")
    source, executable = ROOT / "tests/race_check/programs.cpp", folder / "programs"
    includes = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    command = [COMPILER, *FLAGS, *includes, str(source), "-o", str(executable)]
    subprocess.run(command, check=True)
    return executable


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("correct", None),
        ("never written", None),
        ("missing sync", "ThreadSanitizer: data race"),
        ("colliding blocks", "ThreadSanitizer: data race"),
        ("divergent sync", "race check: a thread waits at line"),
        ("overrun", "race check: float 95 of 95 of shared memory was written"),
    ],
)
def test_finds(programs, name, finding):
    run = subprocess.run([programs, name], capture_output=True, text=True, check=False, timeout=60)
    if finding is None:
        assert run.returncode == 0, run.stderr
        assert not run.stderr
    else:
        assert run.returncode != 0
        assert finding in run.stderr
