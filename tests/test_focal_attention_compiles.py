"""focal_attention's Triton kernels compile for the GPUs they are meant for, and fit on them."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.support.triton_launches import (
    assert_fit,
    assert_rounded,
    compile_launch,
    record_launches,
    specialization,
)
from vss_kernels import FocalGeometry
from vss_kernels._runtime import triton_support
from vss_kernels.focal_attention import triton_gradient_kernels, triton_kernels
from vss_kernels.focal_attention.op import geometry_settings
from vss_kernels.focal_attention.tables import num_tokens

pytestmark = pytest.mark.skipif(
    triton_support.INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile"
)

MODULES = (triton_kernels, triton_gradient_kernels)
KERNELS = {
    "widen_bias_kernel",
    "attend_kernel",
    "query_gradient_kernel",
    "bias_gradient_kernel",
    "transposed_bias_kernel",
    "token_gradient_kernel",
    "sum_parts_kernel",
}


def run_attention(
    dtype: torch.dtype,
    dim: int = 32,
    geometry: FocalGeometry | None = None,
    grid: tuple[int, int] = (9, 9),
    batch: int = 1,
) -> None:
    """Forward and backward on a grid of windows; CFFM has nine by nine for 480x480."""
    geometry = FocalGeometry() if geometry is None else geometry
    heads, positions = 8, geometry.window**2
    query = torch.empty(batch, grid[0] * grid[1] * positions, heads, dim, dtype=dtype)
    key_value = torch.empty(batch, num_tokens(geometry, grid), 2, heads, dim, dtype=dtype)
    bias = torch.empty(heads, positions, geometry.num_keys, dtype=dtype)
    sizes = (*grid, geometry_settings(geometry), True)
    out, statistics = torch.ops.vss_kernels.focal_attention(query, key_value, bias, *sizes)
    torch.ops.vss_kernels.focal_attention_backward(
        out, query, key_value, bias, out, statistics, *sizes
    )


@pytest.mark.parametrize(
    ("dtype", "float32_products", "capability"),
    [
        (torch.bfloat16, "ieee", 90),
        (torch.float32, "tf32", 80),
        pytest.param(torch.float32, "tf32", 90, marks=pytest.mark.slow),
        pytest.param(torch.float32, "ieee", 90, marks=pytest.mark.slow),
        pytest.param(torch.float16, "ieee", 80, marks=pytest.mark.slow),
    ],
    indirect=["float32_products"],
)
@pytest.mark.usefixtures("float32_products")
def test_kernels_fit(dtype, capability):
    launches = record_launches(MODULES, lambda: run_attention(dtype))
    assert {launch.kernel.__name__ for launch in launches} == KERNELS
    assert_fit(launches, capability)


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "window"), [(4, 3), (128, 14)])
def test_kernels_at_the_limits(dim, window):
    geometry = FocalGeometry(window, window // 2)
    for dtype in (torch.float16, torch.float32):
        run = functools.partial(run_attention, dtype, dim, geometry)
        for launch in record_launches(MODULES, run):
            compile_launch(launch, 90)


def test_another_size_is_not_another_kernel():
    """The published sizes, others and a batch of one all launch the same compiled kernels."""
    sizes = [((9, 9), 2), ((9, 16), 1), ((9, 16), 3), ((2, 2), 1), ((5, 11), 4), ((20, 35), 1)]
    kernels = []
    for grid, batch in sizes:
        run = functools.partial(run_attention, torch.half, 32, None, grid, batch)
        launches = record_launches(MODULES, run)
        kernels.append({(launch.kernel.__name__, specialization(launch)) for launch in launches})
    assert {name for name, _ in kernels[0]} == KERNELS
    assert all(more <= kernels[0] for more in kernels)


@pytest.mark.parametrize("float32_products", ["tf32"], indirect=True)
@pytest.mark.usefixtures("float32_products")
def test_products_in_tf32_are_of_rounded_numbers():
    """Hopper's own conversion cuts bits off."""
    launches = record_launches(MODULES, functools.partial(run_attention, torch.float32))
    copies = {"widen_bias_kernel", "transposed_bias_kernel", "sum_parts_kernel"}
    assert_rounded(launches, 90, KERNELS - copies)
