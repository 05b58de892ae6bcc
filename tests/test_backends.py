"""The backend machinery: choice, refusal, forcing, logging, and the report about it."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import vss_kernels
from vss_kernels import info
from vss_kernels._runtime import backends, native
from vss_kernels._runtime.backends import BackendError, Implementation, Operator, always


@pytest.fixture
def operator(monkeypatch):
    """An operator that prefers a native implementation which takes only positive numbers."""
    monkeypatch.setattr(backends, "_operators", dict(backends.operators()))
    monkeypatch.setattr(backends, "_logged", set())
    return Operator(
        "double",
        [
            Implementation(
                "native",
                lambda value: ("native", 2 * value),
                lambda value: None if value > 0 else "it takes positive numbers only",
                always,
            ),
            Implementation("triton", lambda value: value, always, lambda: "there is no GPU"),
            Implementation("eager", lambda value: ("eager", value + value), always, always),
        ],
    )


def test_the_first_that_can_run_is_chosen(operator):
    assert operator(3) == ("native", 6)
    assert operator(-3) == ("eager", -6)


def test_probing_logs_each_reason_once(operator, caplog):
    with caplog.at_level(logging.INFO, logger="vss_kernels"):
        operator(-1)
        operator(-1)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "double: not using the native backend: it takes positive numbers only",
        "double: not using the triton backend: there is no GPU",
    ]


def test_contexts_of_threads_that_overlap_leave_no_choice_behind(operator):
    first, second = backends.backend("native"), backends.backend("eager")
    first.__enter__()
    second.__enter__()
    assert operator(3) == ("eager", 6)
    first.__exit__(None, None, None)
    assert operator(3) == ("eager", 6)
    second.__exit__(None, None, None)
    assert operator(-3) == ("eager", -6)
    assert operator(3) == ("native", 6)


def test_many_threads_leave_no_choice_behind(operator):
    def force(number):
        for step in range(200):
            with backends.backend(("eager", "native")[(number + step) % 2]):
                operator(3)

    threads = [threading.Thread(target=force, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert operator(-3) == ("eager", -6)
    assert operator(3) == ("native", 6)


def test_forcing_raises_the_same_reason(operator):
    with backends.backend("native"), pytest.raises(BackendError, match="positive numbers only"):
        operator(-1)
    with backends.backend("triton"), pytest.raises(BackendError, match="there is no GPU"):
        operator(1)


def test_forcing_can_name_operators_and_nests(operator):
    with backends.backend("eager"):
        assert operator(1)[0] == "eager"
        with backends.backend("native", "double"):
            assert operator(1)[0] == "native"
        assert operator(1)[0] == "eager"
    assert operator(1)[0] == "native"


def test_a_backend_the_operator_lacks_is_an_error():
    x, weight, bias = torch.zeros(1, 2, 2, 1), torch.zeros(1), torch.zeros(())
    with backends.backend("triton"), pytest.raises(BackendError, match="has only native, eager"):
        vss_kernels.focal_pool(x, weight, bias, (2, 2))


@pytest.mark.parametrize(
    ("names", "message"),
    [(("fast",), "unknown backend 'fast'"), (("eager", "focal_pol"), "unknown operator")],
)
def test_unknown_names_are_errors(names, message):
    with pytest.raises(ValueError, match=message), backends.backend(*names):
        pass


def test_the_environment_variable_is_read():
    assert backends.parse_environment("native") == {"*": "native"}
    assert backends.parse_environment("eager, focal_pool=native") == {
        "*": "eager",
        "focal_pool": "native",
    }
    with pytest.raises(ValueError, match="VSS_KERNELS_BACKEND='quick'"):
        backends.parse_environment("quick")


def test_info_lists_every_operator_and_backend():
    text = info.report()
    for name in backends.operators():
        assert name in text
    for name in backends.BACKENDS:
        assert name in text
    assert torch.__version__ in text


def test_info_runs_as_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "vss_kernels.info"], capture_output=True, text=True, check=True
    )
    assert "focal_pool" in result.stdout
    assert result.stderr == ""


BROKEN_EXTENSION = """
import sys, pathlib, importlib.util, importlib.machinery
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "vss_kernels._C":
            return {spec}
sys.meta_path.insert(0, Finder())
import torch, vss_kernels
from vss_kernels._runtime import native
print(native.problem())
print(vss_kernels.focal_pool(torch.ones(1, 2, 2, 1), torch.ones(4), torch.zeros(()), (1, 1)).item())
"""


def run_with_extension(spec: str) -> str:
    """Imports the package in a fresh process whose extension is replaced by ``spec``."""
    return subprocess.run(
        [sys.executable, "-c", BROKEN_EXTENSION.replace("{spec}", spec)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_extensions_operators_are_those_of_its_sources():
    text = (Path(__file__).parents[1] / "csrc" / "library.cpp").read_text()
    schemas = re.findall(r'm\.def\(\s*"(\w+)\(', text)
    assert sorted(name for name in schemas if not name.endswith("_backward")) == list(
        native.OPERATORS
    )


def test_an_extension_of_older_sources_is_out_of_date_and_eager_still_works(tmp_path):
    registers_nothing = tmp_path / "_C.py"
    registers_nothing.touch()
    out = run_with_extension(
        f"importlib.util.spec_from_file_location(name, {str(registers_nothing)!r})"
    )
    assert "out of date: it lacks add_norm_cpu, aggregate_affinity" in out
    assert out.endswith("4.0\n")


def test_an_extension_of_another_interface_is_out_of_date(tmp_path):
    registers_names_alone = tmp_path / "_C.py"
    registers_names_alone.write_text(
        "import torch\n"
        "library = torch.library.Library('vss_kernels', 'FRAGMENT')\n"
        f"for name in {native.OPERATORS!r}:\n"
        "    library.define(name + '(Tensor x) -> Tensor')\n"
        "interface = -1\n"
    )
    out = run_with_extension(
        f"importlib.util.spec_from_file_location(name, {str(registers_names_alone)!r})"
    )
    assert (
        f"its interface is number -1, and this Python code is for number {native.INTERFACE}" in out
    )
    assert out.endswith("4.0\n")


def test_a_broken_extension_is_reported_as_broken_and_eager_still_works(tmp_path):
    library = tmp_path / "_C.so"
    library.write_bytes(b"\x7fELF and then nothing")
    out = run_with_extension(
        "importlib.util.spec_from_loader(name, "
        f"importlib.machinery.ExtensionFileLoader(name, {str(library)!r}))"
    )
    assert "failed to load" in out
    assert "not built" not in out
    assert out.endswith("4.0\n")


@pytest.mark.parametrize(
    ("capability", "arch_list", "runs"),
    [
        ((8, 0), "8.0;9.0", True),
        ((8, 9), "8.0;9.0", True),
        ((9, 0), "8.0;9.0", True),
        ((10, 0), "8.0;9.0", False),
        ((10, 0), "8.0;9.0+PTX", True),
        ((12, 0), "8.0 9.0a+PTX", True),
        ((7, 5), "8.0;9.0+PTX", False),
        ((8, 0), "8.6", False),
        ((8, 0), "", False),
    ],
)
def test_gpus_that_a_build_runs_on(capability, arch_list, runs):
    assert native.runs_on(capability, arch_list) is runs


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 6), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), True),
        ((10, 3), True),
        ((11, 0), False),  # neither machine code of its major version nor PTX that is old enough
        ((12, 0), True),
        ((12, 1), True),
        ((13, 0), True),
    ],
)
def test_gpus_that_a_package_runs_on(capability, runs):
    script = (Path(__file__).parents[1] / ".ci" / "check-package").read_text()
    found = re.search(r"TORCH_CUDA_ARCH_LIST:-([^}]+)}", script)
    assert found is not None
    assert native.runs_on(capability, found.group(1)) is runs


def test_a_gpu_that_the_build_does_not_fit_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(native, "_HAS_CUDA", True)
    monkeypatch.setattr(native, "build_info", lambda: {"cuda_arch_list": "8.0;9.0"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    native._find_gpu_problem.cache_clear()
    try:
        with FakeTensorMode():
            gpu_tensor = torch.empty(2, device="cuda")
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            reason = native.refuses(gpu_tensor)
    finally:
        native._find_gpu_problem.cache_clear()
    assert "built for compute capabilities 8.0;9.0, and this GPU has 7.5" in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of a machine without a GPU")
def test_a_fake_gpu_tensor_is_taken_where_there_is_no_gpu_to_ask(monkeypatch):
    monkeypatch.setattr(native, "_HAS_CUDA", True)
    native._find_gpu_problem.cache_clear()
    try:
        with FakeTensorMode():
            assert native.refuses(torch.empty(2, device="cuda")) is None
    finally:
        native._find_gpu_problem.cache_clear()


def test_asking_for_the_gpu_leaves_a_graph_whole(monkeypatch):
    monkeypatch.setattr(native, "_HAS_CUDA", False)
    native._find_gpu_problem.cache_clear()

    def choose(x):
        return x if native._gpu_problem(0) is None else x + 1

    torch.compiler.reset()
    compiled = torch.compile(choose, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
    native._find_gpu_problem.cache_clear()
