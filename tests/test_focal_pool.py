"""focal_pool: definition, native kernels, gradients, registration and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager
from vss_kernels import focal_pool
from vss_kernels._runtime import native

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# (batch, height, width, channels, side of the sub-window, cells)
SIZES = [
    (2, 14, 21, 8, 7, (2, 3)),  # whole sub-windows, no resize
    (1, 63, 63, 33, 3, (18, 18)),  # scaled down a little, channels that fill no register
    (2, 5, 6, 16, 2, (3, 5)),  # scaled up
    (1, 40, 50, 5, 2, (3, 4)),  # scaled down so far that pixels are skipped
    (1, 1, 1, 3, 7, (5, 4)),  # a single pixel
    (1, 9, 10, 1200, 3, (2, 3)),  # more channels than a GPU's block has threads for
    (1, 97, 90, 4, 2, (1, 1)),  # a patch that fills no GPU's shared memory
    (0, 4, 4, 3, 2, (2, 2)),  # an empty batch
]


def make_inputs(size, dtype=torch.float32, device="cpu"):
    batch, height, width, channels, side, cells = size
    x = torch.randn(batch, height, width, channels, dtype=dtype, device=device)
    weight = torch.randn(side * side, dtype=dtype, device=device)
    bias = torch.randn((), dtype=dtype, device=device)
    return x, weight, bias, cells


def brute_force(x, weight, bias, cells):
    """Computes the definition, position by position, in double precision."""
    batch, height, width, channels = x.shape
    side = round(weight.numel() ** 0.5)
    kernel = weight.reshape(side, side)
    out = torch.zeros(batch, *cells, channels, dtype=torch.float64)

    def taps(position, size, resized):
        source = max((position + 0.5) * size / resized - 0.5, 0.0)
        first = min(int(source), size - 1)
        second = min(first + 1, size - 1)
        return ((first, 1 - (source - first)), (second, source - first))

    for row in range(cells[0]):
        for column in range(cells[1]):
            for i in range(side):
                for j in range(side):
                    for y, weight_y in taps(row * side + i, height, cells[0] * side):
                        for z, weight_z in taps(column * side + j, width, cells[1] * side):
                            out[:, row, column] += kernel[i, j] * weight_y * weight_z * x[:, y, z]
    return out + bias


@pytest.mark.parametrize("size", [SIZES[0], SIZES[2], SIZES[4]])
def test_eager_is_the_definition(size):
    x, weight, bias, cells = make_inputs(size, torch.float64)
    with vss_kernels.backend("eager"):
        result = focal_pool(x, weight, bias, cells)
    torch.testing.assert_close(result, brute_force(x, weight, bias, cells), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES[2:5])
def test_eager_gradients(size):
    x, weight, bias, cells = make_inputs(size, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x[..., :3].contiguous(), weight, bias)]
    assert torch.autograd.gradcheck(lambda *a: focal_pool(*a, cells), inputs)


@needs_native
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_is_as_accurate_as_eager(size, dtype, device):
    x, weight, bias, cells = make_inputs(size, dtype, device)
    assert_as_accurate_as_eager(
        lambda *tensors: focal_pool(*tensors, cells), (x, weight, bias), "focal_pool", "native"
    )


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 40),
    side=st.integers(1, 7),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    order=st.permutations(range(4)),
)
def test_native_at_odd_sizes_and_strides(height, width, channels, side, rows, columns, order):
    shape = (2, height, width, channels)
    stored = torch.rand([shape[axis] for axis in order])
    x = stored.permute([order.index(axis) for axis in range(4)])
    assert x.shape == shape
    weight, bias = torch.rand(side * side), torch.rand(())
    assert_as_accurate_as_eager(
        lambda *tensors: focal_pool(*tensors, (rows, columns)),
        (x, weight, bias),
        "focal_pool",
        "native",
        positive=True,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 4, 3)}, ValueError, r"x must have 4 dimensions \(B,H,W,C\)"),
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(1, 0, 4, 3)}, ValueError, "at least one row"),
        ({"x": torch.zeros(1, 4, 4, 3, dtype=torch.int32)}, TypeError, "must be float32"),
        ({"weight": torch.zeros(5)}, ValueError, r"g\*g values.*got 5"),
        ({"weight": torch.zeros(4, dtype=torch.float16)}, TypeError, "cast them to one dtype"),
        ({"bias": torch.zeros(1)}, ValueError, "bias must have 0 dimensions"),
        ({"cells": (0, 2)}, ValueError, "two positive sizes"),
        ({"bias": torch.zeros((), device="meta")}, ValueError, "move them to one device"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "x": torch.zeros(1, 4, 4, 3),
        "weight": torch.zeros(4),
        "bias": torch.zeros(()),
        "cells": (2, 2),
    }
    with pytest.raises(error, match=message):
        focal_pool(**{**arguments, **change})
