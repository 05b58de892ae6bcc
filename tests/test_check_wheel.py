"""The check of the extension in a wheel."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("check_wheel", ROOT / ".ci" / "check_wheel.py")
assert spec is not None
assert spec.loader is not None
check_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_wheel)

EXTENSION = "vss_kernels/_C.cpython-311-x86_64-linux-gnu.so"


def make_wheel(folder: Path, files: dict[str, bytes]) -> str:
    path = folder / "package.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return str(path)


def test_says_how_large_the_extension_is(tmp_path) -> None:
    wheel = make_wheel(tmp_path, {EXTENSION: bytes(1_500_000), "vss_kernels/__init__.py": b""})
    assert check_wheel.check(wheel) == f"{EXTENSION}: 1.5 MB, 0.0 MB in the wheel"


def test_a_wheel_without_an_extension_is_refused(tmp_path) -> None:
    with pytest.raises(SystemExit, match="found none"):
        check_wheel.check(make_wheel(tmp_path, {"vss_kernels/__init__.py": b""}))


def test_a_large_extension_is_refused(tmp_path) -> None:
    wheel = make_wheel(tmp_path, {EXTENSION: bytes(check_wheel.LARGEST + 1)})
    with pytest.raises(SystemExit, match=r"25\.0 MB, at most 25 are wanted"):
        check_wheel.check(wheel)


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("flags", "debug"), [(["-g"], True), (["-g", "-s"], False)])
def test_debug_information_is_refused(flags, debug, tmp_path) -> None:
    source, library = tmp_path / "source.cpp", tmp_path / "library.so"
    source.write_text("int answer() { return 42; }\n")
    subprocess.run(["c++", "-shared", "-fPIC", *flags, str(source), "-o", str(library)], check=True)
    wheel = make_wheel(tmp_path, {EXTENSION: library.read_bytes()})
    if debug:
        with pytest.raises(SystemExit, match="debug information"):
            check_wheel.check(wheel)
    else:
        assert "MB in the wheel" in check_wheel.check(wheel)
