"""depthwise_gelu: definition, native kernels, gradients, layouts and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.precision import assert_as_accurate_as_eager
from vss_kernels import depthwise_gelu
from vss_kernels._runtime import native

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# (batch, height, width, channels)
SIZES = [
    (2, 15, 15, 64),  # one tile
    (1, 33, 131, 40),  # several tiles, channels that fill no register
    (2, 4, 3, 130),  # several slabs of channels
    (1, 1, 7, 5),  # a single row, fewer channels than lanes
    (1, 6, 1, 17),  # a single column
    (2, 1, 1, 3),  # a single pixel
    (0, 4, 4, 3),  # an empty batch
]


def make_inputs(size, dtype=torch.float32, device="cpu"):
    channels = size[-1]
    x = torch.randn(size, dtype=dtype, device=device)
    weight = torch.randn(channels, 1, 3, 3, dtype=dtype, device=device) / 2
    return x, weight, torch.randn(channels, dtype=dtype, device=device)


def brute_force(x, weight, bias):
    """Computes the definition, position by position, in double precision."""
    batch, height, width, channels = x.shape
    out = torch.zeros(batch, height, width, channels, dtype=torch.float64)
    for n in range(batch):
        for y in range(height):
            for z in range(width):
                for c in range(channels):
                    total = bias[c].item()
                    for i in range(3):
                        for j in range(3):
                            row, column = y + i - 1, z + j - 1
                            if 0 <= row < height and 0 <= column < width:
                                total += weight[c, 0, i, j].item() * x[n, row, column, c].item()
                    normal = 0.5 * math.erfc(-total / math.sqrt(2))
                    out[n, y, z, c] = total * normal
    return out


@pytest.mark.parametrize("size", [(2, 4, 5, 3), (1, 1, 3, 2), (1, 2, 1, 1)])
def test_eager_is_the_definition(size):
    inputs = make_inputs(size, torch.float64)
    with vss_kernels.backend("eager"):
        result = depthwise_gelu(*inputs)
    torch.testing.assert_close(result, brute_force(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 4, 5, 3), (1, 1, 2, 4)])
def test_eager_gradients(size):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(size, torch.float64)]
    assert torch.autograd.gradcheck(depthwise_gelu, inputs)


@needs_native
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_is_as_accurate_as_eager(size, dtype, device):
    inputs = make_inputs(size, dtype, device)
    assert_as_accurate_as_eager(depthwise_gelu, inputs, "depthwise_gelu", "native")


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 70),
    channels=st.integers(1, 70),
    order=st.permutations(range(4)),
)
def test_native_at_odd_sizes_and_strides(height, width, channels, order):
    x, weight = torch.rand(2, height, width, channels), torch.rand(channels, 1, 3, 3)
    inputs = stored_in_order(x, order), stored_in_order(weight, order), torch.rand(channels)
    # Positive, so that no derivative is close to zero, where its error is large beside it.
    assert_as_accurate_as_eager(depthwise_gelu, inputs, "depthwise_gelu", "native", positive=True)


@needs_native
@pytest.mark.parametrize("device", DEVICES)
def test_native_reads_parts_of_larger_maps(device):
    x, weight, bias = make_inputs((2, 9, 40, 24), device=device)
    parts = x[:, 1:-1, 3::2, 2:19], weight[2:19], bias[2:19]
    steps = x[..., ::2], weight[::2].flip(2, 3), bias[::2]
    expanded = x[:, :1, :, :5].expand(-1, 6, -1, -1), weight[:5], bias[:1].expand(5)
    for inputs in (parts, steps, expanded):
        assert_as_accurate_as_eager(depthwise_gelu, inputs, "depthwise_gelu", "native")


@needs_native
@pytest.mark.parametrize("device", DEVICES)
def test_gelu_over_the_whole_range(device):
    """Its value and derivative, by maps of one pixel that the convolution leaves as they are."""
    values = torch.cat([torch.linspace(-14, 14, 40_001), torch.tensor([-3e38, -1e4, 1e4, 3e38])])
    z = values.to(device).view(-1, 1, 1, 1).requires_grad_()
    weight, bias = torch.zeros(1, 1, 3, 3, device=device), torch.zeros(1, device=device)
    weight[..., 1, 1] = 1
    with vss_kernels.backend("native"):
        found = depthwise_gelu(z, weight, bias)
    (derivative,) = torch.autograd.grad(found.sum(), z)
    exact = values.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    for have, want in ((found, expected), (derivative, slope)):
        have = have.detach().flatten().cpu().double()
        torch.testing.assert_close(have, want.detach(), rtol=6e-8, atol=3e-7)
        tiny = (have != 0) & (have.abs() < torch.finfo(torch.float32).tiny)
        assert not tiny.any(), "denormal numbers slow down what reads them"


@needs_native
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_spreads_as_far_as_the_kernel(device):
    x = torch.randn(1, 7, 9, 2, device=device)
    x[0, 3, 4, 0], x[0, 3, 4, 1] = float("nan"), float("inf")
    weight, bias = torch.ones(2, 1, 3, 3, device=device), torch.zeros(2, device=device)
    with vss_kernels.backend("native"):
        out = depthwise_gelu(x, weight, bias)
    near = torch.zeros(7, 9, dtype=torch.bool, device=device)
    near[2:5, 3:6] = True
    assert torch.equal(out[0, ..., 0].isnan(), near)
    assert torch.equal(out[0, ..., 1] == float("inf"), near)
    assert out[0, ~near].isfinite().all()


@needs_native
@pytest.mark.parametrize("device", DEVICES)
def test_a_result_does_not_depend_on_what_is_around_it(device):
    """On the batch, on tiles, or on channels beside it: streaming and clips agree bit for bit."""
    x, weight, bias = make_inputs((3, 40, 150, 80), device=device)
    with vss_kernels.backend("native"):
        whole = depthwise_gelu(x, weight, bias)
        sample = depthwise_gelu(x[1:2], weight, bias)
        part = depthwise_gelu(x[1:2, 5:33, 40:145, 3:70], weight[3:70], bias[3:70])
    assert torch.equal(sample, whole[1:2])
    assert torch.equal(part[:, 1:-1, 1:-1], whole[1:2, 6:32, 41:144, 3:70])


@needs_native
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_backward_pass_can_give_the_result_again(size, dtype, device):
    """Bit for bit, beside gradients that are the same with and without it."""
    inputs = make_inputs(size, dtype, device)
    with vss_kernels.backend("native"):
        expected = depthwise_gelu(*inputs)
    backward = torch.ops.vss_kernels.depthwise_gelu_backward
    grad = torch.randn_like(expected)
    *gradients, result = backward(grad, *inputs, [True] * 4)
    assert torch.equal(result, expected)
    *others, nothing = backward(grad, *inputs, [True] * 3 + [False])
    assert nothing.numel() == 0
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)
    *nothings, alone = backward(grad, *inputs, [False] * 3 + [True])
    assert torch.equal(alone, expected)
    assert all(nothing.numel() == 0 for nothing in nothings)


@needs_native
def test_only_the_inputs_are_saved():
    x, weight, bias = (tensor.requires_grad_() for tensor in make_inputs((1, 4, 5, 6)))
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        vss_kernels.backend("native"),
    ):
        depthwise_gelu(x, weight, bias)
    assert {tensor.data_ptr() for tensor in saved} == {
        tensor.data_ptr() for tensor in (x, weight, bias)
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 4, 3)}, ValueError, r"x must have 4 dimensions \(B,H,W,C\)"),
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(1, 0, 4, 3)}, ValueError, "at least one row, column and channel"),
        ({"x": torch.zeros(1, 4, 4, 3, dtype=torch.int32)}, TypeError, "must be float32"),
        (
            {"weight": torch.zeros(4, 1, 3, 3)},
            ValueError,
            r"weight must have shape \(3, 1, 3, 3\), got \(4, 1, 3, 3\)",
        ),
        ({"weight": torch.zeros(3, 9)}, ValueError, r"weight must have 4 dimensions \(C,1,3,3\)"),
        (
            {"weight": torch.zeros(3, 1, 3, 3, dtype=torch.float16)},
            TypeError,
            "cast them to one dtype",
        ),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \(3\), got \(4,\)"),
        ({"bias": None}, TypeError, "bias must be a tensor"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "move them to one device"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "x": torch.zeros(1, 4, 4, 3),
        "weight": torch.zeros(3, 1, 3, 3),
        "bias": torch.zeros(3),
    }
    with pytest.raises(error, match=message):
        depthwise_gelu(**{**arguments, **change})
