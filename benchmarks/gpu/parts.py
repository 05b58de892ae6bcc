"""The parts of a run on a GPU and their steps, most important first."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.steps import ROOT, SKIPPED, Step
from benchmarks.smallest import CASES
from vss_kernels._runtime import backends

# Benchmarks that `time` takes, a file's most telling ones; of files that are not named, all but
# those that compile. BASELINE: what the released programs were measured on.
NOT_COMPILED = "not compiled and not inductor and not cuda-graph"
TIMED = {
    "bench_aggregate_affinity": f"b1 and {NOT_COMPILED}",
    "bench_upsample_cross_entropy": NOT_COMPILED,
    "bench_upsample_argmax": NOT_COMPILED,
    "bench_relation": NOT_COMPILED,
    "bench_focal_attention": f"not (480x480 and B1) and {NOT_COMPILED}",
    "bench_focal_pool": NOT_COMPILED,
    "bench_fuse_pyramid": f"8 and not last and {NOT_COMPILED}",
    "bench_streaming": "not compiled",
    "bench_training": "not projected and not inductor",
}
CONTRACT = "tests/test_contract.py"
"""Tests of what all operators promise, each named after operator and backend."""

HOST_TIME = "bench_overhead"
"""The file whose benchmarks need no GPU."""


@dataclass(frozen=True)
class Setting:
    """How the steps run.

    Attributes:
        results: Folder of the rows and the log.
        dry_run: Whether a CPU stands in for the GPU; tests and benchmarks are only collected then.
        only: Leaves out the steps whose name lacks this text.
    """

    results: Path
    dry_run: bool = False
    only: str = ""

    @property
    def rows(self) -> Path:
        """The CSV file of benchmark rows."""
        return self.results / "gpu.csv"


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        steps: Makes its steps.
        minutes: What it may take at most where all parts share half an hour; alone it may take
            eight minutes.
        at_a_time: How many of its steps run at the same time.
    """

    steps: Callable[[Setting], list[Step]]
    minutes: float
    at_a_time: int = 1


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _run_tests(setting: Setting, *arguments: str) -> list[str]:
    # Twice -v makes up for the -q of the settings: a line a test.
    how = ["--collect-only"] if setting.dry_run else ["-vv", "--tb=short"]
    return _module("pytest", *how, "-p", "no:cacheprovider", *arguments)


def _named(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in folder.glob(pattern))


def test_files(*operators: str) -> list[str]:
    """Returns the test files of operators, by the name they have in common."""
    tests = ROOT / "tests"
    return [file for operator in operators for file in _named(tests, f"test_{operator}*.py")]


def native_operators() -> list[str]:
    """Returns the operators that have a native implementation."""
    return [
        name
        for name, operator in sorted(backends.operators().items())
        if any(choice.backend == "native" for choice in operator.implementations)
    ]


def _triton_files() -> list[str]:
    return _named(ROOT / "tests", "test_*triton*.py")


def build(setting: Setting) -> list[Step]:
    """The extension with CUDA, unless a prebuilt one is there; then what this install can do."""
    info = Step("info", _module("vss_kernels.info"))
    if setting.dry_run:
        return [info]
    return [Step("extension", _module("benchmarks.gpu.build")), info]


def smoke(setting: Setting) -> list[Step]:
    """One call of each operator, in a process of its own: one that crashes takes no other along."""
    return [
        Step(operator, _module("benchmarks.gpu.smoke", operator), seconds=100) for operator in CASES
    ]


def test_native(setting: Setting) -> list[Step]:
    """GPU tests: first the native operators, then all else but Triton's, then huge tensors."""
    own, triton = test_files(*native_operators()), _triton_files()
    others = [
        file
        for file in _named(ROOT / "tests", "test_*.py")
        if file not in [*own, *triton, CONTRACT]
    ]
    marked, huge = ["-m", "gpu and not slow", "--maxfail=10"], ["-m", "gpu and slow"]
    return [
        Step("native operators", _run_tests(setting, *marked, *own)),
        Step(
            "promises of native operators", _run_tests(setting, *marked, CONTRACT, "-k", "native")
        ),
        Step("models", _run_tests(setting, *marked, *others)),
        Step("huge tensors", _run_tests(setting, *huge, *own, *others)),
    ]


def time(setting: Setting) -> list[Step]:
    """Graph replays and launched calls at published sizes, training steps, streaming."""
    files = {Path(file).stem: file for file in _named(ROOT / "benchmarks", "bench_*.py")}
    others = [name for name in files if name not in TIMED and name != HOST_TIME]
    return [
        _benchmark(setting, files[name], TIMED.get(name, NOT_COMPILED), 150)
        for name in [*TIMED, *others]
        if name in files
    ]


def _benchmark(setting: Setting, file: str, selection: str, seconds: float = 480) -> Step:
    command = _run_tests(setting, file, "-k", selection, "--results", str(setting.rows))
    return Step(f"{Path(file).stem} ({selection})", command, seconds=seconds)


def profile(setting: Setting) -> list[Step]:
    """Counters of the main kernels: what limits them."""
    main = ("aggregate_affinity", "upsample_cross_entropy", "upsample_argmax", "focal_attention")
    return [
        Step(operator, _module("benchmarks.gpu.profile", operator), seconds=120)
        for operator in [*main, *(name for name in CASES if name not in main)]
    ]


def test_triton(setting: Setting) -> list[Step]:
    """Triton's kernels on the hardware instead of in the interpreter."""
    files = _triton_files()
    promises = ("-m", "gpu and not slow", CONTRACT, "-k", "triton")
    return [
        Step("Triton on a GPU", _run_tests(setting, "-m", "gpu and not slow", *files)),
        Step("promises of Triton operators", _run_tests(setting, *promises)),
        Step("the interpreter's tests", _run_tests(setting, "tests/interpreter")),
        Step("huge tensors", _run_tests(setting, "-m", "gpu and slow", *files)),
    ]


def sanitize(setting: Setting) -> list[Step]:
    """compute-sanitizer: memory errors in all native operators, races in the two with the most."""
    if setting.dry_run:
        prefix = []
    else:
        program = _compute_sanitizer()
        if program is None:
            reason = "compute-sanitizer was not found, neither on PATH nor in CUDA_HOME"
            code = f"print({reason!r}); raise SystemExit({SKIPPED})"
            return [Step("compute-sanitizer", [sys.executable, "-c", code])]
        prefix = [program, "--error-exitcode", "1", "--kernel-name", "kernel_substring=vss"]
    # PyTorch's caching allocator would hide accesses past the end of a tensor.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = _run_tests(
        setting, "-x", "-m", "gpu and not slow", "-k", "not compile and not graph and not triton"
    )
    memory, races = (["--tool", "memcheck", "--padding", "32"], ["--tool", "racecheck"])
    if setting.dry_run:
        memory, races = [], []
    files = [*test_files(*native_operators()), CONTRACT]
    racing = test_files("aggregate_affinity", "upsample_cross_entropy")
    return [
        Step("memcheck", [*prefix, *memory, *tests, *files], environment),
        Step("racecheck", [*prefix, *races, *tests, *racing], environment),
    ]


def _compute_sanitizer() -> str | None:
    name = "compute-sanitizer"
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [Path(home) / "bin" / name for home in homes if home]
    return shutil.which(name) or next((str(place) for place in places if place.exists()), None)


def bench(setting: Setting) -> list[Step]:
    """Every benchmark, those that compile last; then tables and plots."""
    files = _named(ROOT / "benchmarks", "bench_*.py")
    # Eager is what each row is compared with, in the same run.
    selections = (NOT_COMPILED, "compiled or inductor or cuda-graph or eager")
    if setting.dry_run:  # which has no rows to report
        return [Step(chosen, _run_tests(setting, *files, "-k", chosen)) for chosen in selections]
    steps = [_benchmark(setting, file, chosen) for chosen in selections for file in files]
    report = _module("benchmarks.report", "--folder", str(setting.results))
    return [*steps, Step("report", report)]


PARTS = {
    "build": Part(build, 4),
    "smoke": Part(smoke, 2, at_a_time=4),
    "test-native": Part(test_native, 4),
    "time": Part(time, 7),
    "profile": Part(profile, 3),
    "test-triton": Part(test_triton, 4),
    "sanitize": Part(sanitize, 3),
    "bench": Part(bench, 3),
}
