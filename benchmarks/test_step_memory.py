"""Memory of a training step by tracing: what is counted, and how much the published sizes need."""

from __future__ import annotations

import pytest
import torch

from benchmarks.step_memory import MODELS, step_memory
from tests.support.kernel_count import traced
from tests.support.memory import MIB
from tests.support.traced_memory import MemoryCounter
from vss_kernels._runtime import native

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))


def test_what_is_counted():
    with traced(half=False), MemoryCounter() as counter:
        x = torch.empty(256, 1024)  # 1 MiB
        assert counter.living == MIB
        view = x.t()[:7]
        y = x + 1
        assert counter.living == counter.peak == 2 * MIB
        del x
        assert counter.living == 2 * MIB  # the view keeps it
        del view, y
        assert counter.living == 0
        one = torch.empty(())
        assert counter.living == 512
        assert one.shape == ()
    assert counter.peak == 2 * MIB


def test_what_is_kept_for_the_backward_pass_is_counted():
    with traced(half=False), MemoryCounter() as counter:
        x = torch.empty(256, 1024, requires_grad=True)
        kept = x.sigmoid()  # its gradient needs the result
        total = kept.sum()
        del kept
        assert counter.living == 2 * MIB + 512
        total.backward()
        assert x.grad is not None
        # The map, its result, which is let go at the end, and the gradient; the total and its own.
        assert counter.peak == 3 * MIB + 2 * 512


@needs_native
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_needs_a_third_of_the_memory(name, half):
    """At most 35 % of the eager definitions', two clips of 4 frames, 480x480."""
    eager, fused = (step_memory(name, choice, half) for choice in (False, True))
    assert fused <= 0.35 * eager, (fused, eager)
