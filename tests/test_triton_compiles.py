"""Every Triton kernel compiles for the GPUs it is meant for, and fits on them; no GPU needed."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from tests.support.triton_launches import (
    Specialization,
    assert_fit,
    assert_rounded,
    compile_launch,
    compiled_ptx,
    record_launches,
    specialization,
)
from vss_kernels._runtime import triton_support, triton_token_rows
from vss_kernels.add_layer_norm import triton_kernels as norm_kernels
from vss_kernels.attend_selected import triton_kernels as attend_kernels
from vss_kernels.masked_affinity import triton_kernels as affinity_kernels
from vss_kernels.select_tokens import triton_kernels as select_kernels

pytestmark = pytest.mark.skipif(
    triton_support.INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile"
)

MODULES = (affinity_kernels, select_kernels, attend_kernels, triton_token_rows)
KERNELS = {
    "part_score_kernel",
    "score_kernel",
    "choose_kernel",
    "affinity_kernel",
    "target_gradient_kernel",
    "row_gradient_kernel",
    "place_rows_kernel",
    "attend_kernel",
    "affinity_gradient_kernel",
    "value_row_gradient_kernel",
}


def run_relation(
    dtype: torch.dtype,
    top: int = 5,
    channels: int = 128,
    tokens: int = 225,
    batch: int = 2,
    scale: int = 16,
) -> None:
    """The operators forward and backward; by default MRCFA-B1 at 1/8 on 480x480, two clips."""
    ops = torch.ops.vss_kernels
    target = torch.empty(batch, scale * tokens, channels, dtype=dtype)
    reference = torch.empty(batch, 3, tokens, channels, dtype=dtype)
    index = ops.select_tokens(target, reference, tokens // 2, top, True)
    affinity = ops.masked_affinity(target, reference, index, True)
    ops.masked_affinity_backward(affinity, target, reference, index, [True, True], True)
    value = torch.empty(batch, 3, tokens, 256, dtype=dtype)
    out, statistics = ops.attend_selected(affinity, value, index, True)
    ops.attend_selected_backward(out, affinity, statistics, value, index, [True, True], True)


@pytest.mark.parametrize(
    ("dtype", "float32_products", "capability"),
    [
        (torch.float32, "ieee", 80),
        (torch.bfloat16, "ieee", 90),
        pytest.param(torch.float32, "ieee", 90, marks=pytest.mark.slow),
        pytest.param(torch.float32, "tf32", 80, marks=pytest.mark.slow),
        pytest.param(torch.float32, "tf32", 90, marks=pytest.mark.slow),
        pytest.param(torch.float16, "ieee", 80, marks=pytest.mark.slow),
    ],
    indirect=["float32_products"],
)
@pytest.mark.usefixtures("float32_products")
def test_relation_kernels(dtype, capability):
    launches = record_launches(MODULES, lambda: run_relation(dtype))
    assert {launch.kernel.__name__ for launch in launches} == KERNELS
    assert_fit(launches, capability)


@pytest.mark.parametrize("channels", [64, 512])
def test_add_layer_norm_kernels(channels):
    """A residual stream in float32 and a branch in bfloat16, as under autocast."""

    def run() -> None:
        ops = torch.ops.vss_kernels
        x, factor, weight = torch.empty(8, 900, channels), torch.empty(8), torch.empty(channels)
        total, normed, statistics = ops.add_layer_norm(
            x, weight, weight, x.bfloat16(), factor, 1e-6, torch.bfloat16
        )
        ops.add_layer_norm_backward(
            total, normed, total, weight, factor, statistics, torch.bfloat16
        )

    launches = record_launches([norm_kernels], run)
    assert len(launches) == 2
    assert_fit(launches, 90)


def test_parts_of_rows_are_loaded_in_vectors():
    """Sixteen bytes at a time, not two: where a part starts is known to be a multiple of 32."""
    for launch in record_launches(MODULES, functools.partial(run_relation, torch.bfloat16)):
        if launch.kernel.__name__ in ("row_gradient_kernel", "value_row_gradient_kernel"):
            ptx = compiled_ptx(launch, 90)
            assert "cp.async.cg.shared.global" in ptx
            assert "ld.global.b16" not in ptx


@pytest.mark.parametrize("float32_products", ["tf32"], indirect=True)
@pytest.mark.usefixtures("float32_products")
def test_products_in_tf32_are_of_rounded_numbers():
    """Hopper's own conversion cuts bits off."""
    launches = record_launches(MODULES, functools.partial(run_relation, torch.float32))
    without_products = {"score_kernel", "choose_kernel", "place_rows_kernel"}
    exact = {"part_score_kernel"}  # a choice must not depend on how products round
    assert_rounded(launches, 90, KERNELS - without_products - exact)


@pytest.mark.slow
@pytest.mark.parametrize(("top", "channels"), [(1, 8), (128, 512)])
def test_relation_kernels_at_the_limits(top, channels):
    for dtype in (torch.float16, torch.float32):
        run = functools.partial(run_relation, dtype, top, channels)
        for launch in record_launches(MODULES, run):
            compile_launch(launch, 90)


def test_another_size_is_not_another_kernel():
    """A size compiles nothing new, but that rows of a multiple of 16 are loaded in vectors."""
    compiled: dict[str, set[Specialization]] = {}
    for tokens, batch, scale in itertools.product((225, 405, 256, 28), (1, 2), (16, 4, 1)):
        run = functools.partial(run_relation, torch.half, 5, 128, tokens, batch, scale)
        for launch in record_launches(MODULES, run):
            compiled.setdefault(launch.kernel.__name__, set()).add(specialization(launch))
    assert set(compiled) == KERNELS
    assert all(len(kernels) <= 2 for kernels in compiled.values()), compiled
