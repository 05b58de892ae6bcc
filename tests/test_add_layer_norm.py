"""add_layer_norm against its definition in PyTorch's own layers; messages; compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vss_kernels import add_layer_norm


def make_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """x, weight, bias, branch, factor."""
    x, branch = (torch.randn(3, 2, 4, 6, dtype=dtype) for _ in range(2))
    weight, bias = torch.randn(6, dtype=dtype), torch.randn(6, dtype=dtype)
    return x, weight, bias, branch, torch.tensor([0.0, 1.25, 1.25])


def test_against_the_definition_row_by_row() -> None:
    x, weight, bias, branch, factor = make_inputs()
    total, normed = add_layer_norm(x, weight, bias, branch, factor, eps=0.1)
    for sample in range(3):
        for row in range(2):
            for column in range(4):
                want = x[sample, row, column] + factor[sample] * branch[sample, row, column]
                deviation = (want.var(unbiased=False) + 0.1).sqrt()
                expected = (want - want.mean()) / deviation * weight + bias
                torch.testing.assert_close(total[sample, row, column], want)
                torch.testing.assert_close(normed[sample, row, column], expected)


def test_without_a_branch_it_is_layer_norm() -> None:
    x, weight, bias, *_ = make_inputs(torch.float32)
    total, normed = add_layer_norm(x, weight, bias)
    assert total is x
    assert torch.equal(normed, F.layer_norm(x, (6,), weight, bias))


def test_gradients() -> None:
    x, weight, bias, branch, factor = make_inputs()
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, branch)]
    assert torch.autograd.gradcheck(lambda *tensors: add_layer_norm(*tensors, factor), inputs)


def test_autocast_narrows_the_normalised_result_alone() -> None:
    x, weight, bias, branch, factor = make_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_layer_norm(x, weight, bias, branch.bfloat16(), factor)
        assert add_layer_norm(x, weight, bias, dtype=torch.float32)[1].dtype == torch.float32
        assert add_layer_norm(x.double(), weight, bias)[1].dtype == torch.float64
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    want = x + factor.view(3, 1, 1, 1) * branch
    torch.testing.assert_close(total, want, rtol=1e-2, atol=1e-2)
    assert torch.equal(normed, F.layer_norm(total, (6,), weight, bias).bfloat16())


def test_compiles_in_one_piece() -> None:
    torch.compiler.reset()
    inputs = make_inputs(torch.float32)
    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="eager")
    for have, want in zip(compiled(*inputs), add_layer_norm(*inputs), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(6)}, ValueError, "at least 2 dimensions"),
        ({"x": torch.zeros(3, 2, 4, 6).long()}, TypeError, "x must be floating point"),
        ({"weight": torch.zeros(5)}, ValueError, "weight must have shape"),
        ({"bias": torch.zeros(6).half()}, TypeError, "bias"),
        ({"branch": torch.zeros(3, 2, 4, 1)}, ValueError, "branch must have shape"),
        ({"branch": 1}, TypeError, "branch must be a tensor or None"),
        ({"branch": torch.zeros(3, 2, 4, 6).int()}, TypeError, "branch must be floating point"),
        ({"branch": None}, ValueError, "factor multiplies a branch"),
        ({"factor": torch.zeros(2)}, ValueError, "factor must have shape"),
        ({"factor": torch.zeros(3, device="meta")}, ValueError, "factor is on meta"),
        ({"dtype": torch.int64}, TypeError, "dtype must be floating point"),
    ],
)
def test_messages(change: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("x", "weight", "bias", "branch", "factor")
    arguments = dict(zip(names, make_inputs(torch.float32), strict=True)) | change
    with pytest.raises(error, match=message):
        add_layer_norm(**arguments)  # type: ignore[arg-type]
