"""How much memory a call takes at its peak, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20
ORDINARY_POOL = (0, 0)


def graph_pool_memory(segments: Sequence[Mapping[str, Any]]) -> float:
    """Returns the GPU memory that the private pools of CUDA graphs hold, in MiB.

    Args:
        segments: Result of :func:`torch.cuda.memory_snapshot`.
    """
    sizes = (
        segment["total_size"]
        for segment in segments
        if tuple(segment["segment_pool_id"]) != ORDINARY_POOL
    )
    return sum(sizes) / MIB


def peak_memory(run: Callable[[], object]) -> float:
    """Returns the peak of the memory that ``run`` allocates, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()  # allocations and releases, with their time
    sizes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    allocated = peak = 0
    for _, size in sorted(sizes, key=lambda entry: entry[0]):
        allocated += size
        peak = max(peak, allocated)
    return peak / MIB
