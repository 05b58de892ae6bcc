"""Times an operator's implementations side by side, with memory, after a correctness check."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import vss_kernels
from benchmarks.floor import floor
from tests.support.memory import peak_memory
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.repeats import captured

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODES = ("forward", "forward+backward")
ROUNDS = 20


def timer() -> float:
    """Seconds, after all work queued on the GPU is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def implementation_of(operators: Sequence[str], name: str) -> Iterator[None]:
    """Forces the backend behind an implementation's name.

    ``compiled`` is compiled eager; ``fused`` is what the operators of a chain choose by themselves.
    """
    if name.startswith("fused"):
        yield
        return
    backend = "eager" if name.startswith("compiled") else name.removesuffix(" graph")
    with vss_kernels.backend(backend, *operators):
        yield


def as_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Captures ``run`` in a CUDA graph, so that only the GPU's own time is measured."""
    graph, _ = captured(run)
    return graph.replay


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
    iterations: int = 1,
    least_seconds: float | None = None,
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
        iterations: Calls in one timing.
        least_seconds: What the GPU needs at least, see :mod:`benchmarks.floor`; None if unknown.
    """
    memory = peak_memory(run)
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
    benchmark.pedantic(timed, rounds=rounds, iterations=iterations, warmup_rounds=min(rounds, 3))


class Measure:
    """Checks, times and records one implementation of one case."""

    def __init__(self, benchmark: Any, node_name: str) -> None:
        self.benchmark = benchmark
        self.node_name = node_name

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
            backend = "eager" if implementation.startswith("compiled") else implementation
            assert_as_accurate_as_eager(
                function, inputs, operators[0], backend.removesuffix(" graph")
            )
        run = self._runner(function, inputs, mode, implementation.startswith("compiled"))
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
                iterations=20 if DEVICE == "cuda" else 1,
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
    def _runner(
        function: Callable[..., Tensor], inputs: Sequence[Tensor], mode: str, compiled: bool
    ) -> Callable[[], object]:
        call = torch.compile(function) if compiled else function
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


def rows_of(benchmarks: Sequence[Any]) -> list[dict[str, object]]:
    """Turns a run's statistics into rows: each implementation compared with eager's median.

    Absolute times are kept for GPUs only: a shared CPU's say nothing to anyone else.
    """
    medians = {}
    for entry in benchmarks:
        graph = entry.extra_info["implementation"].endswith(" graph")
        medians[entry.group, entry.extra_info["implementation"]] = entry.stats.median, graph
    rows = []
    for entry in benchmarks:
        information = dict(entry.extra_info)
        baseline = (
            "eager graph" if medians[entry.group, information["implementation"]][1] else "eager"
        )
        if (entry.group, baseline) not in medians:
            continue
        ratio = medians[entry.group, baseline][0] / entry.stats.median
        least = information.pop("least_seconds")
        rows.append(
            {
                **information,
                "times_faster_than_eager": f"{ratio:.2f}",
                "spread": f"{entry.stats.iqr / entry.stats.median:.2f}",
                "peak_mib": f"{information['peak_mib']:.1f}",
                "fraction_of_floor": "" if least is None else f"{least / entry.stats.median:.3f}",
                "median_ms": f"{entry.stats.median * 1e3:.4f}" if DEVICE == "cuda" else "",
            }
        )
    return rows
