"""What a call costs the host: every operator and two chains of them on the smallest maps.

A GPU that is launched from Python is never faster than this. The kernels are next to nothing here:
native ones run on maps of a few cells, Triton's are not run at all, so that their launches cost
only what comes before them. ``python -m benchmarks.bench_overhead`` prints the microseconds of CPU
time that a call takes on one thread, beside the targets.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import vss_kernels
from benchmarks.harness import MODES, implementation_of, record
from benchmarks.smallest import CASES, CHANNELS
from tests.support.aggregation_cases import PUBLISHED
from vss_kernels._runtime import triton_support
from vss_kernels.nn import AffinityAggregation, FocalAttention, RelationAffinity

RELATION, FOCAL = "relation chain", "FocalAttention"
# Microseconds, forward and forward+backward, on the machine that the targets were set on.
TARGETS = {
    ("aggregate_affinity", "forward"): 30,
    ("aggregate_affinity", "forward+backward"): 100,
    ("upsample_cross_entropy", "forward+backward"): 60,
    ("focal_pool", "forward+backward"): 60,
    (RELATION, "forward"): 130,
    (RELATION, "forward+backward"): 450,
    (FOCAL, "forward"): 150,
    (FOCAL, "forward+backward"): 500,
}
REFERENCES, SIDE = 2, 2


@dataclass(frozen=True)
class Work:
    """A call and the tensors that it has gradients of.

    Attributes:
        run: Calls the operators.
        leaves: Inputs and parameters; none where the result has no gradient.
    """

    run: Callable[[], Tensor]
    leaves: Sequence[Tensor]


def _of_operator(name: str) -> Work:
    case = CASES[name]()
    leaves = [
        tensor.requires_grad_(case.differentiable and tensor.is_floating_point())
        for tensor in case.inputs
    ]
    return Work(lambda: case.run(*leaves), [leaf for leaf in leaves if leaf.requires_grad])


def _aggregation() -> Work:
    """On weights that are at hand, each a tensor of its own as in a model."""
    module = AffinityAggregation(PUBLISHED["b1"])
    weights = module.weights()
    maps = [torch.randn(2, 2 * side, 2 * side, requires_grad=True) for side in (1, 2, 4)]
    return Work(
        lambda: vss_kernels.aggregate_affinity(*maps, weights), [*maps, *module.parameters()]
    )


def _relation() -> Work:
    """Choice of tokens, affinities at three scales, their aggregation, and attention."""
    module = RelationAffinity((CHANNELS,) * 3, PUBLISHED["b1"], keep=0.5)
    sizes = [(SIDE * scale, SIDE * scale) for scale in (4, 2, 1)]
    target = [torch.randn(1, h * w, CHANNELS, requires_grad=True) for h, w in sizes]
    tokens = SIDE * SIDE
    reference = [torch.randn(1, REFERENCES, tokens, CHANNELS, requires_grad=True) for _ in range(3)]
    value = torch.randn(1, REFERENCES, tokens, CHANNELS, requires_grad=True)

    def run() -> Tensor:
        affinity, index = module.relate(target, reference, sizes)
        return vss_kernels.attend_selected(affinity, value, index)

    return Work(run, [*target, *reference, value, *module.aggregation.parameters()])


def _focal_attention() -> Work:
    """Projections, table of biases, and attention."""
    module = FocalAttention(dim=CHANNELS, num_heads=1)
    side = module.geometry.window
    target = torch.randn(1, side, side, CHANNELS, requires_grad=True)
    pooled = [
        torch.randn(1, *cells, CHANNELS, requires_grad=True)
        for cells in module.geometry.pooled_cells((1, 1))
    ]
    return Work(lambda: module(target, pooled), [target, *pooled, *module.parameters()])


WORK: dict[str, Callable[[], Work]] = {
    **{name: lambda name=name: _of_operator(name) for name in CASES},  # type: ignore[misc]
    "aggregate_affinity": _aggregation,
    RELATION: _relation,
    FOCAL: _focal_attention,
}


class _Kernel:
    """A Triton kernel that is not run; positions that it would have chosen are zero."""

    def __init__(self, chooses: bool) -> None:
        self._chooses = chooses

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: Any, **settings: Any) -> None:
        if self._chooses:
            index = arguments[1]
            index.zero_()


@contextmanager
def without_triton_kernels() -> Iterator[None]:
    """Lets the Triton operators take CPU tensors, and leaves out the kernels alone."""
    found = pkgutil.walk_packages(vss_kernels.__path__, "vss_kernels.")
    names = [module.name for module in found if ".triton_" in module.name]
    before: list[tuple[Any, str, Any]] = []
    try:
        for module in map(importlib.import_module, names):
            for name, kernel in list(vars(module).items()):
                if name.endswith("_kernel"):
                    before.append((module, name, kernel))
                    setattr(module, name, _Kernel(chooses=name == "choose_kernel"))
        with mock.patch.object(triton_support, "INTERPRETED", True):
            yield
    finally:
        for module, name, kernel in before:
            setattr(module, name, kernel)


def runner(work: Work, mode: str) -> Callable[[], object]:
    """Returns the call to measure."""
    if mode == "forward":

        def run() -> object:
            with torch.no_grad():
                return work.run()

        return run
    gradient = torch.ones_like(work.run())
    return lambda: torch.autograd.grad(work.run(), work.leaves, gradient)


def modes(work: Work) -> Sequence[str]:
    """Returns the modes that a work has."""
    return MODES if work.leaves else MODES[:1]


@pytest.mark.parametrize("implementation", ["eager", "fused"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WORK)
def bench_overhead(name, mode, implementation, benchmark):
    work = WORK[name]()
    if mode not in modes(work):
        pytest.skip(f"{name} has no gradient")
    with without_triton_kernels(), implementation_of((), implementation):
        run = runner(work, mode)
        run()
        record(
            benchmark,
            run,
            operator=f"host time of {name}",
            case="smallest maps",
            dtype=torch.float32,
            mode=mode,
            implementation=implementation,
        )


def microseconds(run: Callable[[], object], calls: int, timings: int) -> list[float]:
    """Returns the CPU time of a call, in several timings of many calls each.

    Unlike the time on the clock it leaves out when other programs ran.
    """
    for _ in range(calls):
        run()
    times = []
    for _ in range(timings):
        start = time.process_time()
        for _ in range(calls):
            run()
        times.append((time.process_time() - start) / calls * 1e6)
    return times


def report(calls: int, timings: int, only: str = "") -> str:
    """Returns a table of host times and targets.

    Args:
        calls: Calls in a timing.
        timings: Timings of each work; the least is what an undisturbed CPU needs.
        only: Leaves out work whose name lacks this text.
    """
    lines = [f"{'work':<24}{'mode':<18}{'least us':>9}{'median us':>11}{'target':>8}  met?"]
    with without_triton_kernels():
        for name in (name for name in WORK if only in name):
            work = WORK[name]()
            for mode in modes(work):
                times = microseconds(runner(work, mode), calls, timings)
                target = TARGETS.get((name, mode))
                met = "" if target is None else "yes" if min(times) <= target else "no"
                lines.append(
                    f"{name:<24}{mode:<18}{min(times):>9.0f}{statistics.median(times):>11.0f}"
                    f"{target or '-':>8}  {met}".rstrip()
                )
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--timings", type=int, default=15)
    parser.add_argument("--only", default="", metavar="TEXT", help="work whose name has this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(report(options.calls, options.timings, options.only))


if __name__ == "__main__":
    main()
