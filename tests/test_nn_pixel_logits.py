"""Resized logits of pixels: what they are, and where their native kernel runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels._runtime import native
from vss_kernels.nn import pixel_logits as module
from vss_kernels.nn import resize_pixel_logits

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# (images, rows, columns, classes) and the size to resize to: around the widths of registers, and
# reduced as well as enlarged.
SIZES = {
    "one": ((1, 1, 1, 1), (1, 1)),
    "twice": ((2, 6, 19, 37), (12, 38)),
    "four times": ((1, 5, 40, 16), (20, 160)),
    "odd": ((1, 7, 33, 5), (11, 70)),
    "reduced": ((1, 9, 50, 3), (4, 17)),
}


def plain(rows, size):
    return F.interpolate(rows.permute(0, 3, 1, 2), size, mode="bilinear")


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_is_as_accurate_as_pytorch(name, dtype):
    shape, size = SIZES[name]
    rows = torch.randn(shape, dtype=dtype)
    assert module._is_native(rows)
    resized = resize_pixel_logits(rows, size)
    exact = plain(rows.double(), size)
    assert resized.dtype == dtype
    assert error(resized, exact) <= 2 * error(plain(rows, size), exact) + SLACK[dtype]


@needs_native
def test_is_the_same_for_any_number_of_threads_and_layout():
    rows = torch.randn(2, 9, 21, 30)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(resize_pixel_logits(rows, (18, 42)))
    torch.set_num_threads(before)
    results.append(resize_pixel_logits(stored_in_order(rows, (0, 3, 1, 2)), (18, 42)))
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_all_else_is_pytorchs(monkeypatch):
    rows = torch.randn(1, 4, 5, 3)
    gradient = rows.clone().requires_grad_()
    assert not module._is_native(gradient)
    assert not module._is_native(rows.double())
    assert not module._is_native(rows[..., :0])
    with vss_kernels.backend("eager"):
        assert not module._is_native(rows)
        assert torch.equal(resize_pixel_logits(rows, (8, 10)), plain(rows, (8, 10)))
    resize_pixel_logits(gradient, (8, 10)).sum().backward()
    assert gradient.grad is not None
    monkeypatch.setattr(native, "_problem", "not built")
    assert not module._is_native(rows)


@needs_native
def test_a_direct_call_refuses_what_does_not_fit():
    resize = torch.ops.vss_kernels.resized_rows_cpu
    for shape, size in (((1, 0, 2, 3), (4, 4)), ((1, 2, 2, 3), (0, 4)), ((1, 2, 2, 3), (4, -1))):
        with pytest.raises(ValueError, match="at least one row and one column"):
            resize(torch.zeros(shape), *size)
    with pytest.raises(ValueError, match="rows must have 4 dimensions"):
        resize(torch.zeros(2, 3, 4), 4, 4)


@needs_native
def test_fake_tensors_have_its_shape():
    torch.library.opcheck(
        torch.ops.vss_kernels.resized_rows_cpu.default,
        (torch.randn(2, 3, 4, 5), 6, 8),
        test_utils=("test_schema", "test_faketensor"),
    )
