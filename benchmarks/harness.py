"""Times an operator's implementations side by side, with memory, after a correctness check."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

import vss_kernels
from benchmarks.floor import floor
from benchmarks.results import counts_cpu_time
from tests.support.memory import graph_pool_memory, peak_memory
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.repeats import captured

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A dry run goes through every benchmark of a GPU at tiny sizes on a CPU, so that no time on a GPU
# is lost to a mistake. What it measures means nothing.
DRY_RUN = DEVICE == "cpu" and os.environ.get("VSS_BENCHMARKS_DRY_RUN") == "1"
ON_GPU = DEVICE == "cuda" or DRY_RUN
MODES = ("forward", "forward+backward")
ROUNDS = 1 if DRY_RUN else 20
# Calls in one timing: enough to hide the clock's resolution, in about this many seconds.
MOST_ITERATIONS, ITERATIONS_SECONDS = 20, 5e-3

Choice = TypeVar("Choice")


def on_machine(*, gpu: Choice, cpu: Choice, dry_run: Choice) -> Choice:
    """Returns the benchmark's setting for where it runs: a GPU, a CPU, or a dry run of the first.

    Args:
        gpu: The published sizes.
        cpu: The same, or fewer of them.
        dry_run: As many cases as ``gpu`` has, tiny ones.
    """
    if DRY_RUN:
        return dry_run
    return gpu if DEVICE == "cuda" else cpu


def timer() -> float:
    """Seconds, after all work queued on the GPU is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if counts_cpu_time() else time.perf_counter()


@contextmanager
def implementation_of(operators: Sequence[str], name: str) -> Iterator[None]:
    """Forces the backend behind an implementation's name.

    ``compiled`` is compiled eager; ``fused`` is what the operators of a chain choose by themselves.
    """
    if name.startswith("fused"):
        yield
        return
    with vss_kernels.backend(backend_of(name), *operators):
        yield


def backend_of(implementation: str) -> str:
    """Returns the backend behind an implementation's name; eager for compiled eager."""
    backend = implementation.removesuffix(" graph")
    if backend.startswith("compiled"):
        return "eager"
    # Tests run Triton's kernels in its interpreter; that would take a dry run minutes.
    return "eager" if backend == "triton" and DRY_RUN else backend


def compiled_for_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function with torch.compile; a dry run leaves it as it is."""
    return function if DRY_RUN else torch.compile(function)


def as_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Captures ``run`` in a CUDA graph, so that only the GPU's own time is measured."""
    if DRY_RUN:
        return run
    graph, _ = captured(run)
    return graph.replay


def fresh_graph_pools() -> float:
    """Drops the CUDA graphs of earlier benchmarks.

    Returns:
        MiB that pools of CUDA graphs still hold: the ``pools_before`` of :func:`record`.
    """
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cpu":
        return 0.0
    torch.cuda.empty_cache()
    return graph_pool_memory(torch.cuda.memory_snapshot())


def iterations_for(run: Callable[[], object]) -> int:
    """Returns how many calls one timing takes."""
    if DRY_RUN:
        return 1
    start = timer()
    run()
    return max(1, min(MOST_ITERATIONS, round(ITERATIONS_SECONDS / (timer() - start))))


def record(
    benchmark: Any,
    run: Callable[[], object],
    *,
    operator: str,
    case: str,
    dtype: torch.dtype,
    mode: str,
    implementation: str,
    rounds: int = ROUNDS,
    pools_before: float | None = None,
    kept: float = 0.0,
    least_seconds: float | None = None,
    is_pytorch: bool = True,
) -> None:
    """Times what has been checked, and keeps its peak memory with it.

    Args:
        benchmark: The fixture of pytest-benchmark.
        run: The work; it has run once already, so that nothing is compiled or set up any more.
        operator: What is measured.
        case: A name for the sizes.
        dtype: Of the inputs, or of the arithmetic where autocast chooses it.
        mode: One of :data:`MODES`.
        implementation: As for :class:`Measure`; with `` graph`` at its end ``run`` is captured.
        rounds: Timings to take.
        pools_before: Result of :func:`fresh_graph_pools` before ``run`` was made, where ``run``
            itself replays CUDA graphs. A replay allocates nothing: its memory is the graphs' pool.
        kept: MiB that ``run`` needs and has held since its first call, outside such pools.
        least_seconds: What the GPU needs at least, see :mod:`benchmarks.floor`; None if unknown.
        is_pytorch: Whether PyTorch allocates the memory; that of others is not counted.
    """
    memory = peak_memory(run) + kept if is_pytorch else math.nan
    if pools_before is not None and DEVICE == "cuda":
        memory += graph_pool_memory(torch.cuda.memory_snapshot()) - pools_before
    timed = as_graph(run) if implementation.endswith(" graph") else run
    benchmark._timer = timer
    benchmark.group = f"{operator} {case} {dtype} {mode}"
    benchmark.extra_info.update(
        operator=operator,
        case=case,
        dtype=str(dtype).removeprefix("torch."),
        mode=mode,
        implementation=implementation,
        peak_mib=memory,
        least_seconds=least_seconds,
    )
    benchmark.pedantic(
        timed,
        rounds=rounds,
        iterations=iterations_for(timed),
        warmup_rounds=0 if DRY_RUN else min(rounds, 3),
    )


class Measure:
    """Checks, times and records one implementation of one case."""

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark

    def __call__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        *,
        operator: str,
        case: str,
        mode: str,
        implementation: str,
        check: bool = True,
        flops: int = 0,
    ) -> None:
        """Runs the benchmark.

        Args:
            function: Calls the public function on the tensors.
            inputs: Tensors on :data:`DEVICE`.
            operator: Public name, or several joined by ``+`` when they form one chain.
            case: A name for the sizes.
            mode: One of :data:`MODES`.
            implementation: A backend's name, ``compiled`` for torch.compile of eager or ``fused``
                for the operators' own choice, each with `` graph`` appended for a CUDA graph's
                replay.
            check: Whether the accuracy rule of the tests is asserted first; a chain of operators
                makes its own check.
            flops: Floating-point operations of the forward pass's matrix products.
        """
        operators = operator.split("+")
        if implementation not in ("eager", "eager graph") and check:
            assert_as_accurate_as_eager(
                function,
                inputs,
                operators[0],
                backend_of(implementation),
                exact_device=DEVICE,
            )
        run = self.runner(function, inputs, mode, implementation.startswith("compiled"))
        with implementation_of(operators, implementation):
            run()
            record(
                self.benchmark,
                run,
                operator=operator,
                case=case,
                dtype=inputs[0].dtype,
                mode=mode,
                implementation=implementation,
                least_seconds=self._least(function, inputs, mode, flops),
            )

    @staticmethod
    def _least(
        function: Callable[..., Tensor], inputs: Sequence[Tensor], mode: str, flops: int
    ) -> float | None:
        """Every input read and every result written once; with gradients, all of it once more."""
        if DEVICE == "cpu":
            return None
        with torch.no_grad():
            out = function(*inputs)
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, out))
        if mode == "forward":
            return floor(moved, flops, inputs[0].dtype)
        # The gradients' inputs: the result's gradient and the inputs; then two products for one.
        gradients = sum(
            tensor.numel() * tensor.element_size()
            for tensor in inputs
            if tensor.is_floating_point()
        )
        return floor(2 * moved + gradients, 3 * flops, inputs[0].dtype)

    @staticmethod
    def runner(
        function: Callable[..., Tensor], inputs: Sequence[Tensor], mode: str, compiled: bool
    ) -> Callable[[], object]:
        call = compiled_for_gpu(function) if compiled else function
        if mode == "forward":

            def run() -> object:
                with torch.no_grad():
                    return call(*inputs)

            return run
        leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        cotangent = torch.randn_like(function(*inputs))

        def run_with_backward() -> object:
            return torch.autograd.grad(call(*leaves), wanted, cotangent)

        return run_with_backward


class Comparison:
    """Turns measurements into rows, each compared with eager's median as soon as both are known.

    Absolute times are kept for GPUs only: a shared CPU's say nothing to anyone else.
    """

    def __init__(self) -> None:
        self._baselines: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], list[Any]] = {}

    def add(self, entry: Any) -> list[dict[str, object]]:
        """Takes a measurement of pytest-benchmark; returns the rows that are complete now.

        A graph's replay is compared with the replay of eager. Rows whose baseline is never measured
        are never returned.
        """
        implementation = entry.extra_info["implementation"]
        baseline = "eager graph" if implementation.endswith(" graph") else "eager"
        key = (entry.group, baseline)
        if implementation == baseline:
            self._baselines[key] = entry.stats.median
        elif key not in self._baselines:
            self._waiting.setdefault(key, []).append(entry)
            return []
        complete = [entry, *self._waiting.pop(key, [])]
        return [_row(measured, self._baselines[key]) for measured in complete]


def _row(entry: Any, baseline: float) -> dict[str, object]:
    information = dict(entry.extra_info)
    least = information.pop("least_seconds")
    median = entry.stats.median
    return {
        **information,
        "times_faster_than_eager": f"{baseline / median:.2f}",
        "spread": f"{entry.stats.iqr / median:.2f}",
        "peak_mib": "" if math.isnan(information["peak_mib"]) else f"{information['peak_mib']:.1f}",
        "fraction_of_floor": "" if least is None else f"{least / median:.3f}",
        "median_ms": f"{median * 1e3:.4f}" if DEVICE == "cuda" else "",
    }
