"""add_layer_norm in Triton: answers, gradients, registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.repeats import assert_repeatable
from tests.support.triton_machine import DEVICE, DTYPES
from vss_kernels import add_layer_norm

SIZES = [(3, 5, 7, 40), (2, 1, 1), (2, 300, 64), (1, 3, 1000), (0, 4, 8), (2, 0, 8)]


def make_inputs(size, dtype=torch.float32) -> tuple[Tensor, ...]:
    """x, weight, bias, branch, factor."""
    x, branch = (3 * torch.randn(size, device=DEVICE).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(size[-1], device=DEVICE).to(dtype) for _ in range(2))
    return x, weight, bias, branch, 2.0 * (torch.rand(size[0], device=DEVICE) < 0.7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_accurate_as_eager(size, dtype):
    *inputs, factor = make_inputs(size, dtype)
    assert_as_accurate_as_eager(
        lambda *tensors: torch.stack(add_layer_norm(*tensors, factor)),
        tuple(inputs),
        "add_layer_norm",
        "triton",
    )


@pytest.mark.parametrize("parts", ["normed", "sum"])
@pytest.mark.parametrize("with_branch", [False, True])
def test_one_result_alone(with_branch, parts):
    """Its gradient, where that of the other result is not there."""
    x, weight, bias, branch, _ = make_inputs(SIZES[0])
    inputs = (x, weight, bias, branch) if with_branch else (x, weight, bias)

    def run(x, weight, bias, branch=None):
        total, normed = add_layer_norm(x, weight, bias, branch)
        return normed if parts == "normed" else total + 0 * weight.sum() + 0 * bias.sum()

    assert_as_accurate_as_eager(run, inputs, "add_layer_norm", "triton")


def test_permuted_inputs():
    *inputs, factor = make_inputs((3, 5, 7, 40))
    inputs[0] = inputs[0].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    inputs[3] = inputs[3].mT.contiguous().mT
    assert_as_accurate_as_eager(
        lambda *tensors: add_layer_norm(*tensors, factor)[1],
        tuple(inputs),
        "add_layer_norm",
        "triton",
    )


def test_the_sum_stays_wide_and_the_result_is_narrow():
    x, weight, bias, branch, factor = make_inputs((2, 9, 24))
    with vss_kernels.backend("triton", "add_layer_norm"):
        total, normed = add_layer_norm(x, weight, bias, branch.half(), factor, dtype=torch.float16)
    assert (total.dtype, normed.dtype) == (torch.float32, torch.float16)
    with vss_kernels.backend("eager"):
        want = add_layer_norm(x, weight, bias, branch.half().float(), factor)
    torch.testing.assert_close(total, want[0])
    torch.testing.assert_close(normed.float(), want[1], rtol=1e-3, atol=1e-3)


def test_two_runs_are_bitwise_equal():
    inputs = [tensor.requires_grad_() for tensor in make_inputs((2, 3000, 64))[:4]]

    def run() -> list[Tensor]:
        with vss_kernels.backend("triton", "add_layer_norm"):
            total, normed = add_layer_norm(*inputs)
        return [normed, *torch.autograd.grad((normed * total).sum(), inputs)]

    assert_repeatable(run, contiguous_gradients=False)


@pytest.mark.parametrize("with_branch", [False, True])
def test_registration(with_branch):
    x, weight, bias, branch, factor = make_inputs((3, 4, 6))
    for tensor in (x, weight, bias, branch):
        tensor.requires_grad_()
    extra = (branch, factor) if with_branch else (None, None)
    arguments = (x, weight, bias, *extra, 1e-5, torch.float32)
    torch.library.opcheck(torch.ops.vss_kernels.add_layer_norm.default, arguments)


def test_second_derivative_is_refused():
    inputs = [tensor.requires_grad_() for tensor in make_inputs((2, 3, 8))[:4]]
    with vss_kernels.backend("triton", "add_layer_norm"):
        normed = add_layer_norm(*inputs)[1]
    (grad,) = torch.autograd.grad(normed.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), inputs[0])
