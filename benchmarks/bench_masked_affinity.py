"""masked_affinity at the three scales of an MRCFA-B1 head."""

from __future__ import annotations

import pytest

from benchmarks.harness import MODES, ON_GPU
from benchmarks.precisions import PRECISIONS, named, products_in
from benchmarks.relation_sizes import CASES, kept, make_tokens
from vss_kernels import masked_affinity, select_tokens

FUSED = ["eager graph", "triton", "triton graph"] if ON_GPU else ["native"]


@pytest.mark.parametrize("implementation", ["eager", "compiled", *FUSED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [0, 1, 2], ids=["8th", "16th", "32nd"])
@pytest.mark.parametrize("case", CASES)
def bench_masked_affinity(case, scale, precision, mode, implementation, measure):
    size = CASES[case]
    with products_in(precision) as dtype:
        target, reference = make_tokens(size, scale, dtype)
        index = select_tokens(target, reference, kept(size))
        measure(
            lambda target, reference: masked_affinity(target, reference, index),
            (target, reference),
            operator="masked_affinity",
            case=named(f"{case} {('1/8', '1/16', '1/32')[scale]}", precision),
            mode=mode,
            implementation=implementation,
            flops=2 * index.numel() * target[0].numel(),
        )
