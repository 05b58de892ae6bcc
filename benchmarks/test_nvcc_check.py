"""The check that nvcc takes every operator."""

from __future__ import annotations

import re
import shutil

import pytest

from benchmarks.gpu_model import nvcc_check
from benchmarks.gpu_model.nvcc_check import ROOT, ToolError, check, cuda_operators

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
KERNEL = "__global__ void kernel(float* x) { x[0] = SQUARE(x[0]); }\n"
FITS = "__device__ float SQUARE(float x) { return x * x; }\n" + KERNEL
REFUSED_FOR_THE_GPU = "float SQUARE(float x) { return x * x; }\n" + KERNEL  # of the host alone
REFUSED_FOR_THE_HOST = (
    "__device__ float multiply(float x, float y) { return x * y; }\n"
    "__host__ __device__ float SQUARE(float x) { return multiply(x, x); }\n" + KERNEL
)


@pytest.fixture
def source_text(monkeypatch, tmp_path):
    """Sets what stands in place of an operator's source; its headers take most of the time."""

    def replace(text):
        def write(operator, folder):
            source = folder / f"{operator}.cu"
            source.write_text(text)
            return source

        monkeypatch.setattr(nvcc_check, "cuda_source", write)

    return replace


def test_lists_the_operators_that_the_library_has_for_cuda():
    library = (ROOT / "csrc" / "library.cpp").read_text()
    entry = re.search(r"#define VSS_EVERY_OPERATOR\(.*?\n\n", library, re.S)
    assert entry is not None
    names = re.findall(r"f\(machine, (\w+)\)", entry.group())
    assert cuda_operators() == sorted(names)


@needs_nvcc
@pytest.mark.parametrize("source", [REFUSED_FOR_THE_GPU, REFUSED_FOR_THE_HOST])
def test_a_call_across_the_machines_is_refused_every_time(source_text, tmp_path, source):
    source_text(source)
    for _ in range(2):
        with pytest.raises(ToolError, match="SQUARE"):
            check("square", shutil.which("nvcc"), tmp_path / "taken")


@needs_nvcc
def test_what_was_taken_is_not_compiled_again_until_it_changes(source_text, tmp_path):
    source_text(FITS)
    nvcc = shutil.which("nvcc")
    assert check("square", nvcc, tmp_path / "taken")
    assert not check("square", nvcc, tmp_path / "taken")
    source_text(FITS + "// changed\n")
    assert check("square", nvcc, tmp_path / "taken")


def test_says_why_nothing_was_checked_without_nvcc(monkeypatch, capsys):
    def find(name):
        raise ToolError(f"{name} was not found")

    monkeypatch.setattr(nvcc_check, "find_tool", find)
    assert nvcc_check.main() == 0
    assert "nvcc was not found" in capsys.readouterr().out


def test_one_refusal_fails_the_whole(monkeypatch, capsys):
    def refuse_one(operator, nvcc, folder):
        if operator == "focal_pool":
            raise ToolError("nvcc failed: an error")
        return True

    monkeypatch.setattr(nvcc_check, "find_tool", lambda name: name)
    monkeypatch.setattr(nvcc_check, "check", refuse_one)
    assert nvcc_check.main() == 1
    shown = capsys.readouterr().out
    assert "does not take csrc/focal_pool/host.cpp\nnvcc failed: an error" in shown
    assert "nvcc takes aggregate_affinity" in shown
