"""fuse_pyramid: definition, native kernels, gradients, layouts, registration and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.definitions import resize
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, assert_as_accurate_as_eager, error
from vss_kernels import fuse_pyramid
from vss_kernels._runtime import native

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CHANNELS_LAST = (0, 2, 3, 1)

# (batch, channels, sizes of the levels)
CASES = [
    (2, 20, ((24, 40), (12, 20), (6, 10), (3, 5))),  # the published ratios
    (1, 5, ((17, 35), (9, 18), (5, 7), (17, 35))),  # no whole ratios, and one of equal size
    (2, 33, ((10, 6), (1, 1), (10, 1), (1, 6))),  # fewer columns than lanes, single cells
    (1, 17, ((9, 70), (8, 69), (2, 70))),  # ratios close to one, several tiles of columns
    (1, 3, ((1, 1), (1, 1))),  # a single pixel
    (1, 4, ((150, 3), (60, 2))),  # several bands of rows
    (1, 2, ((3, 530), (2, 265))),  # the widest tile and more
    (2, 3, ((12, 13),)),  # nothing to add
    (1, 2, ((16, 16),) * 8),  # as many levels as the kernel takes
    (0, 4, ((8, 8), (4, 4))),  # an empty batch
]


def make_levels(batch, channels, sizes, dtype=torch.float32, device="cpu"):
    return [torch.randn(batch, channels, *size).to(device, dtype) for size in sizes]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    batch=st.integers(0, 2),
    channels=st.integers(1, 5),
    first=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    count=st.integers(0, 3),
    dtype=st.sampled_from([torch.float64, *DTYPES]),
    align_corners=st.booleans(),
)
def test_eager_is_the_definition(data, batch, channels, first, count, dtype, align_corners):
    smaller = st.tuples(st.integers(1, first[0]), st.integers(1, first[1]))
    sizes = [first, *data.draw(st.lists(smaller, min_size=count, max_size=count))]
    levels = make_levels(batch, channels, sizes, dtype)
    expected = sum(resize(level.double(), first, align_corners) for level in levels)
    order = data.draw(st.permutations(range(4)))
    with vss_kernels.backend("eager"):
        fused = fuse_pyramid(
            [stored_in_order(level, order) for level in levels], align_corners=align_corners
        )
    assert fused.dtype == dtype
    assert fused.is_contiguous()
    allowed = 1e-13 if dtype == torch.float64 else SLACK[dtype]
    assert error(fused, expected) <= allowed


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_native)])
def test_a_single_level_is_copied(backend):
    level = torch.randn(1, 2, 3, 4)
    with vss_kernels.backend(backend):
        fused = fuse_pyramid([level])
        assert torch.equal(fused, level)
        assert fused.data_ptr() != level.data_ptr()
        channels_last = stored_in_order(level, CHANNELS_LAST)
        assert fuse_pyramid([channels_last]).is_contiguous()


def test_eager_gradients():
    levels = make_levels(2, 2, [(5, 6), (3, 2), (1, 4)], torch.float64)
    inputs = [level.requires_grad_() for level in levels]
    assert torch.autograd.gradcheck(lambda *a: fuse_pyramid(a), inputs)


@needs_native
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), CHANNELS_LAST], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_is_as_accurate_as_eager(case, align_corners, dtype, order, device):
    levels = [stored_in_order(level, order) for level in make_levels(*case, dtype, device)]
    assert_as_accurate_as_eager(
        lambda *a: fuse_pyramid(a, align_corners=align_corners), levels, "fuse_pyramid", "native"
    )


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    channels=st.integers(1, 40),
    first=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    count=st.integers(0, 3),
    align_corners=st.booleans(),
)
def test_native_at_odd_sizes_and_strides(data, channels, first, count, align_corners):
    smaller = st.tuples(st.integers(1, first[0]), st.integers(1, first[1]))
    sizes = [first, *data.draw(st.lists(smaller, min_size=count, max_size=count))]
    levels = [
        stored_in_order(torch.rand(2, channels, *size), data.draw(st.permutations(range(4))))
        for size in sizes
    ]
    assert_as_accurate_as_eager(
        lambda *a: fuse_pyramid(a, align_corners=align_corners),
        levels,
        "fuse_pyramid",
        "native",
        positive=True,
    )


@needs_native
@pytest.mark.parametrize("device", DEVICES)
def test_native_reads_parts_of_larger_maps(device):
    """Steps between neighbours, rows and channels that belong to no whole tensor."""
    columns = [level[:, 1:4, 1:, 2:-1] for level in make_levels(*CASES[0], device=device)]
    channels = [
        stored_in_order(level, CHANNELS_LAST)[:, 2:9, :-1, 1:-1]
        for level in make_levels(*CASES[0], device=device)
    ]
    steps = [level[:, :, ::2, ::2] for level in make_levels(*CASES[0], device=device)]
    expanded = [steps[0], steps[1][:, :, :1, :1].expand(-1, -1, 4, 4)]
    for levels in (columns, channels, steps, expanded):
        assert_as_accurate_as_eager(lambda *a: fuse_pyramid(a), levels, "fuse_pyramid", "native")


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


@needs_native
def test_native_refuses_more_levels_than_it_has_room_for():
    levels = make_levels(1, 1, [(2, 2)] * 9)
    with (
        vss_kernels.backend("native"),
        pytest.raises(
            vss_kernels.BackendError, match=r"fuse_pyramid.*native.*up to 8 levels, not 9"
        ),
    ):
        fuse_pyramid(levels)
    assert fuse_pyramid(levels).shape == (1, 1, 2, 2)


@needs_native
def test_a_direct_call_does_not_read_out_of_bounds():
    operators = torch.ops.vss_kernels
    level = torch.zeros(1, 2, 4, 4)
    for levels in (
        [],
        [level, torch.zeros(1, 2, 5, 4)],
        [level, torch.zeros(1, 3, 2, 2)],
        [level, torch.zeros(1, 2, 0, 2)],
        [level] * 9,
    ):
        with pytest.raises((ValueError, NotImplementedError)):
            operators.fuse_pyramid(levels, False)
    with pytest.raises(TypeError):
        operators.fuse_pyramid([level, level.half()], False)
    for sizes in ([5, 4], [0, 1], [2]):
        with pytest.raises(ValueError, match="fuse_pyramid_backward"):
            operators.fuse_pyramid_backward(level, sizes, False)
