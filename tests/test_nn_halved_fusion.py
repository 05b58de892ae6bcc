"""The fusion of levels at half the sides: what it computes, and where its native kernel runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels._runtime import native
from vss_kernels.nn import fuse_halved
from vss_kernels.nn import halved_fusion as module

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# (images, channels of the result, (channels, rows, columns) of each level): around the widths of
# registers and panels; levels of any size, also larger than the first.
SIZES = {
    "one level": (1, 1, [(1, 2, 2)]),
    "odd channels": (2, 37, [(5, 6, 10), (3, 3, 5), (7, 2, 3), (2, 1, 1)]),
    "panels": (1, 130, [(16, 8, 8), (33, 4, 4)]),
    "published": (1, 64, [(32, 24, 40), (64, 12, 20), (160, 6, 10), (256, 3, 5)]),
    "larger levels": (1, 20, [(9, 4, 6), (4, 5, 13)]),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def inputs_of(size, dtype=torch.float32):
    images, channels, shapes = SIZES[size]
    levels = [
        torch.randn(images, *shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    ]
    weights = [torch.randn(channels, shape[0], dtype=dtype) for shape in shapes]
    return levels, weights, torch.randn(channels, dtype=dtype)


def definition(levels, weights, bias):
    height, width = levels[0].shape[-2:]
    total = bias[:, None, None]
    for level, weight in zip(levels, weights, strict=True):
        resized = F.interpolate(level, (height, width), mode="bilinear")
        total = total + torch.einsum("nchw,ec->nehw", resized, weight)
    return F.interpolate(total.relu(), (height // 2, width // 2), mode="bilinear")


def narrowed_by_steps(levels, weights, bias):
    """The definition as PyTorch rounds it, a level's projection before it is resized."""
    height, width = levels[0].shape[-2:]
    total = bias[:, None, None]
    for level, weight in zip(levels, weights, strict=True):
        projected = F.conv2d(level, weight[:, :, None, None])
        total = total + F.interpolate(projected, (height, width), mode="bilinear")
    return F.interpolate(total.relu(), (height // 2, width // 2), mode="bilinear")


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_is_as_accurate_as_pytorch(size, dtype):
    levels, weights, bias = inputs_of(size, dtype)
    assert module.halves_natively(levels, weights, bias)
    halved = fuse_halved(levels, weights, bias)
    exact = definition(
        [level.double() for level in levels], [w.double() for w in weights], bias.double()
    )
    plain = narrowed_by_steps(levels, weights, bias)
    assert halved.dtype == dtype
    assert error(halved, exact) <= 2 * error(plain, exact) + SLACK[dtype]


@pytest.mark.parametrize("size", [(5, 8), (6, 7), (3, 3)])
def test_odd_sides_are_rounded_down(size):
    levels = [torch.randn(1, 8, *size), torch.randn(1, 4, 2, 3)]
    weights, bias = [torch.randn(6, 8), torch.randn(6, 4)], torch.randn(6)
    assert not module.halves_natively(levels, weights, bias)
    halved = fuse_halved(levels, weights, bias)
    assert halved.shape == (1, 6, size[0] // 2, size[1] // 2)
    torch.testing.assert_close(halved, definition(levels, weights, bias))


@needs_native
def test_is_the_same_for_any_number_of_threads_and_layout():
    levels, weights, bias = inputs_of("published")
    before = torch.get_num_threads()
    results = []
    others = [module.project(*level, None) for level in zip(levels[1:], weights[1:], strict=True)]
    arguments = [levels[0], weights[0], bias, others]
    arguments[0] = arguments[0].permute(0, 2, 3, 1)
    arguments[3] = [other.permute(0, 2, 3, 1) for other in others]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(torch.ops.vss_kernels.halved_pyramid_cpu(*arguments))
    torch.set_num_threads(before)
    arguments[0] = stored_in_order(arguments[0], (3, 1, 0, 2))
    arguments[1] = stored_in_order(arguments[1], (1, 0))
    arguments[3] = [stored_in_order(other, (3, 2, 1, 0)) for other in arguments[3]]
    results.append(torch.ops.vss_kernels.halved_pyramid_cpu(*arguments))
    assert all(torch.equal(result, results[0]) for result in results[1:])


@needs_native
def test_nan_is_passed_on():
    levels, weights, bias = inputs_of("published")
    levels[0][0, 3, 5, 8] = torch.nan
    nans = fuse_halved(levels, weights, bias).isnan()
    assert nans[:, :, 2, 4].all()
    assert nans.sum() == nans.shape[1]


@needs_native
def test_autocast_narrows():
    levels, weights, bias = inputs_of("published")
    with torch.autocast("cpu", torch.bfloat16):
        assert module.halves_natively(levels, weights, bias)
        halved = fuse_halved(levels, weights, bias)
    narrow = [[t.bfloat16() for t in tensors] for tensors in (levels, weights)]
    assert torch.equal(halved, fuse_halved(*narrow, bias.bfloat16()))


def test_all_else_is_pytorchs(monkeypatch):
    levels, weights, bias = inputs_of("published")
    gradient = bias.clone().requires_grad_()
    assert not module.halves_natively(levels, weights, gradient)
    doubles = [[t.double() for t in tensors] for tensors in (levels, weights)]
    assert not module.halves_natively(*doubles, bias.double())
    assert not module.halves_natively(levels, weights, bias.double())
    assert not module.halves_natively(9 * levels[:1], 9 * weights[:1], bias)
    with vss_kernels.backend("eager"):
        assert not module.halves_natively(levels, weights, bias)
        plain = fuse_halved(levels, weights, bias)
    torch.testing.assert_close(plain, definition(levels, weights, bias), rtol=1e-4, atol=1e-4)
    fuse_halved(levels, weights, gradient).sum().backward()
    assert gradient.grad is not None
    monkeypatch.setattr(native, "_problem", "not built")
    assert not module.halves_natively(levels, weights, bias)


def test_a_compiler_sees_pytorchs_operators():
    levels, weights, bias = inputs_of("published")
    compiled = torch.compile(fuse_halved, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(levels, weights, bias), definition(levels, weights, bias), rtol=1e-4, atol=1e-4
    )


@needs_native
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"first": torch.zeros(1, 3, 4, 8)}, ValueError, "even numbers of rows and columns"),
        ({"first": torch.zeros(1, 4, 0, 8)}, ValueError, "even numbers of rows and columns"),
        ({"weight": torch.zeros(6, 7)}, ValueError, r"weight and bias must be \(channels, 8\)"),
        ({"bias": torch.zeros(5)}, ValueError, "weight and bias must be"),
        ({"bias": torch.zeros(6).half()}, TypeError, "bias is Half but first is Float"),
        ({"others": [torch.zeros(1, 2, 2, 5)]}, ValueError, r"a level must be \(1, at least 1"),
        ({"others": [torch.zeros(1, 0, 2, 6)]}, ValueError, r"a level must be \(1, at least 1"),
        ({"others": [torch.zeros(1, 2, 2, 6).half()]}, TypeError, "a level is Half"),
        ({"others": 8 * [torch.zeros(1, 2, 2, 6)]}, ValueError, "at most 7 maps, got 8"),
    ],
)
def test_a_direct_call_refuses_what_does_not_fit(change, error, message):
    arguments = {
        "first": torch.zeros(1, 4, 4, 8),
        "weight": torch.zeros(6, 8),
        "bias": torch.zeros(6),
        "others": [torch.zeros(1, 2, 2, 6)],
    }
    fuse = torch.ops.vss_kernels.halved_pyramid_cpu
    assert fuse(**arguments).shape == (1, 2, 2, 6)
    with pytest.raises(error, match=message):
        fuse(**(arguments | change))


@needs_native
def test_fake_tensors_have_its_shape():
    arguments = (torch.randn(2, 4, 6, 8), torch.randn(5, 8), torch.randn(5))
    torch.library.opcheck(
        torch.ops.vss_kernels.halved_pyramid_cpu.default,
        (*arguments, [torch.randn(2, 2, 3, 5)]),
        test_utils=("test_schema", "test_faketensor"),
    )
