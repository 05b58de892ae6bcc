"""Host times: every operator and target is measured, kernels alone are left out."""

from __future__ import annotations

import pytest
import torch

import vss_kernels
from benchmarks import bench_overhead
from benchmarks.bench_overhead import TARGETS, WORK, modes, report, without_triton_kernels
from vss_kernels._runtime import backends, triton_support
from vss_kernels.masked_affinity import triton_kernels


def test_every_operator_and_every_target_is_measured():
    assert set(backends.operators()) <= set(WORK)
    assert all(mode in modes(WORK[name]()) for name, mode in TARGETS)


def test_triton_operators_run_up_to_their_kernels():
    kernel = triton_kernels.affinity_kernel
    work = WORK["masked_affinity"]()
    with without_triton_kernels(), vss_kernels.backend("triton", "masked_affinity"):
        result = work.run()
        gradients = torch.autograd.grad(result, work.leaves, torch.ones_like(result))
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in work.leaves]
    assert triton_kernels.affinity_kernel is kernel
    assert not triton_support.INTERPRETED
    with pytest.raises(vss_kernels.BackendError), vss_kernels.backend("triton", "masked_affinity"):
        work.run()


def test_the_table_says_which_targets_are_met(monkeypatch):
    targets = {("focal_pool", "forward"): 1e9, ("focal_pool", "forward+backward"): 0.0}
    monkeypatch.setattr(bench_overhead, "TARGETS", targets)
    _, forward, backward = report(calls=2, timings=2, only="focal_pool").splitlines()
    assert forward.startswith("focal_pool")
    assert forward.endswith("yes")
    assert backward.endswith("no")
