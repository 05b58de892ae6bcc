"""Running the same work again: bit for bit the same, whole, and also out of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def assert_repeatable(
    run: Callable[[], Sequence[Tensor]], contiguous_gradients: bool = True
) -> None:
    """Asserts that two runs agree bit for bit and leave nothing unwritten.

    Args:
        run: Returns an operator's result, then gradients.
        contiguous_gradients: Whether they are contiguous, as the result must be.
    """
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        results = [run() for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for number, (first, second) in enumerate(zip(*results, strict=True)):
        assert first.is_contiguous() or (number > 0 and not contiguous_gradients)
        assert first.isfinite().all()
        assert torch.equal(first, second)


def captured(run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Captures a call in a CUDA graph, which fails if it waits for the GPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def assert_replays(run: Callable[[], Sequence[Tensor]]) -> None:
    """Asserts that a CUDA graph of the call writes what the call itself returns."""
    expected = run()
    graph, results = captured(run)
    for result in results:
        result.detach().zero_()
    graph.replay()
    for have, want in zip(results, expected, strict=True):
        assert torch.equal(have, want)
