"""Test files that need a package which is not installed are skipped by name; others still run."""

from __future__ import annotations

import subprocess
import sys

import pytest

# `None` in sys.modules makes an import fail as if the package were not installed.
RUN = """
import sys
import pytest
sys.modules[sys.argv[1]] = None
sys.exit(pytest.main(["-p", "no:cacheprovider", "-rs", "--collect-only", "-q", *sys.argv[2:]]))
"""


def collect_without(package: str, *files: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, package, *files], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("package", "file"), [("av", "test_video.py"), ("lightning", "test_optim.py")]
)
def test_a_missing_optional_package_skips_its_files_by_name_and_leaves_the_others(package, file):
    result = collect_without(package, f"tests/{file}", "tests/test_race_check.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{file} needs the package {package}" in result.stdout
    assert "tests/test_race_check.py" in result.stdout


@pytest.mark.parametrize("package", ["PIL"])
def test_any_other_missing_package_is_an_error(package):
    result = collect_without(package, "tests/test_video.py")
    assert result.returncode != 0
    assert package in result.stdout
