"""fuse_pyramid: definition, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.definitions import resize, stored_in_order
from tests.precision import SLACK, error
from vss_kernels import fuse_pyramid


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def make_levels(batch, channels, sizes, dtype=torch.float32):
    return [torch.randn(batch, channels, *size).to(dtype) for size in sizes]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    batch=st.integers(0, 2),
    channels=st.integers(1, 5),
    first=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    count=st.integers(0, 3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_is_the_definition(data, batch, channels, first, count, dtype):
    smaller = st.tuples(st.integers(1, first[0]), st.integers(1, first[1]))
    sizes = [first, *data.draw(st.lists(smaller, min_size=count, max_size=count))]
    levels = make_levels(batch, channels, sizes, dtype)
    expected = sum(resize(level.double(), first) for level in levels)
    order = data.draw(st.permutations(range(4)))
    fused = fuse_pyramid([stored_in_order(level, order) for level in levels])
    assert fused.dtype == dtype
    assert fused.is_contiguous()
    allowed = 1e-13 if dtype == torch.float64 else SLACK[dtype]
    assert error(fused, expected) <= allowed


def test_a_single_level_is_copied():
    level = torch.randn(1, 2, 3, 4)
    fused = fuse_pyramid([level])
    assert torch.equal(fused, level)
    assert fused.data_ptr() != level.data_ptr()
    turned = stored_in_order(level, (0, 2, 3, 1))
    assert fuse_pyramid([turned]).is_contiguous()


def test_gradients():
    levels = make_levels(2, 2, [(5, 6), (3, 2), (1, 4)], torch.float64)
    inputs = [level.requires_grad_() for level in levels]
    assert torch.autograd.gradcheck(lambda *a: fuse_pyramid(a), inputs)


def test_autocast_gives_its_dtype():
    levels = make_levels(1, 2, [(4, 4), (2, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        fused = fuse_pyramid([levels[0], levels[1].bfloat16()])
    assert fused.dtype == torch.bfloat16


def test_compiles_without_graph_breaks_at_several_sizes():
    compiled = torch.compile(fuse_pyramid, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 12):
        levels = make_levels(2, 3, [(size, size + 2), (size // 2, size // 2 + 1)])
        levels[1].requires_grad_()
        fused = compiled(levels)
        torch.testing.assert_close(fused, fuse_pyramid(levels))
        fused.sum().backward()
        assert levels[1].grad is not None


@pytest.mark.parametrize(
    ("levels", "error_type", "message"),
    [
        ([], ValueError, "at least one map, got none"),
        ([torch.zeros(2, 3, 4)], ValueError, r"levels\[0\] must have 4 dimensions \(N,E,h,w\)"),
        ([torch.zeros(1, 2, 4, 4), None], TypeError, r"levels\[1\] must be a tensor"),
        (
            [torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)],
            ValueError,
            r"levels\[1\] must have shape \(1, 2, any, any\), got \(1, 3, 2, 2\)",
        ),
        (
            [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 2)],
            ValueError,
            r"levels\[1\] must have between 1 and 4 rows.*got 5 x 2",
        ),
        ([torch.zeros(1, 2, 0, 4)], ValueError, r"levels\[0\] must have between 1"),
        (
            [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2).half()],
            TypeError,
            r"levels\[1\] is torch\.float16 but levels\[0\] is torch\.float32",
        ),
    ],
)
def test_bad_input_is_named(levels, error_type, message):
    with pytest.raises(error_type, match=message):
        fuse_pyramid(levels)
