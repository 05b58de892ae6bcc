"""Addition and LayerNorm in inference: what the native kernel computes, and where it runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels import add_layer_norm
from vss_kernels._runtime import native
from vss_kernels.nn import add_norm
from vss_kernels.nn import norm as module

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# (rows, channels): around the widths of registers and blocks.
SHAPES = [(1, 1), (3, 5, 32), (2, 33), (65, 64), (2, 3, 7, 160), (130, 17)]
NARROW = [torch.float16, torch.bfloat16]


def inputs_of(*shape, offset=0.0):
    """x, weight, bias, branch."""
    x, branch = torch.randn(shape) + offset, torch.randn(shape)
    return x, torch.randn(shape[-1]), torch.randn(shape[-1]), branch


@needs_native
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("has_branch", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_as_accurate_as_pytorch(shape, has_branch, offset):
    x, weight, bias, branch = inputs_of(*shape, offset=offset)
    branch = branch if has_branch else None
    assert module._is_native(x, weight, bias, branch, None)
    total, normed = add_norm(x, weight, bias, branch, eps=1e-6)
    want, plain = add_layer_norm(x, weight, bias, branch, eps=1e-6)
    assert torch.equal(total, want)
    exact = F.layer_norm(want.double(), (shape[-1],), weight.double(), bias.double(), eps=1e-6)
    assert normed.is_contiguous()
    assert error(normed, exact) <= 2 * error(plain, exact) + SLACK[torch.float32]


@needs_native
@pytest.mark.parametrize("out", [torch.float32, *NARROW])
@pytest.mark.parametrize("branch_dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_every_dtype_rounds_as_pytorch_does(dtype, branch_dtype, out):
    x, weight, bias, branch = inputs_of(9, 40)
    x, branch = x.to(dtype), branch.to(branch_dtype)
    total, normed = add_norm(x, weight, bias, branch, dtype=out)
    want, _ = add_layer_norm(x, weight, bias, branch, dtype=out)
    assert (total.dtype, normed.dtype) == (dtype, out)
    assert torch.equal(total, want)
    exact = F.layer_norm(want.double(), (40,), weight.double(), bias.double())
    assert error(normed, exact) <= SLACK[out]


@needs_native
def test_autocast_narrows_the_normalised_result_alone():
    x, weight, bias, branch = inputs_of(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_norm(x, weight, bias, branch.bfloat16())
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)


@needs_native
def test_is_the_same_for_any_number_of_threads_and_layout():
    x, weight, bias, branch = inputs_of(3, 200, 48)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(add_norm(x, weight, bias, branch))
    torch.set_num_threads(before)
    strided = [stored_in_order(tensor, (2, 0, 1)) for tensor in (x, branch)]
    results.append(add_norm(strided[0], weight, bias, strided[1]))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@needs_native
def test_nan_stays_in_its_row():
    x, weight, bias, branch = inputs_of(20, 24)
    branch[7, 3] = torch.nan
    total, normed = add_norm(x, weight, bias, branch)
    assert total.isnan().sum() == 1
    assert normed[7].isnan().all()
    assert normed.isnan().sum() == 24


def test_all_else_is_the_operators(monkeypatch):
    x, weight, bias, branch = inputs_of(4, 8)
    gradient = x.clone().requires_grad_()
    assert not module._is_native(gradient, weight, bias, branch, None)
    assert not module._is_native(x.double(), weight, bias, branch, None)
    assert not module._is_native(x, weight.half(), bias.half(), branch, None)
    assert not module._is_native(x.to("meta"), *(t.to("meta") for t in (weight, bias)), None, None)
    with vss_kernels.backend("eager"):
        assert not module._is_native(x, weight, bias, branch, None)
        assert torch.equal(add_norm(x, weight, bias)[1], F.layer_norm(x, (8,), weight, bias))
    factor = torch.tensor([0.0, 1.25, 1.25, 0.0])
    for have, want in zip(
        add_norm(x, weight, bias, branch, factor),
        add_layer_norm(x, weight, bias, branch, factor),
        strict=True,
    ):
        assert torch.equal(have, want)
    add_norm(gradient, weight, bias, branch)[1].square().sum().backward()
    assert gradient.grad is not None
    with pytest.raises(ValueError, match="branch must have shape"):
        add_norm(x, weight, bias, branch[:1])
    monkeypatch.setattr(native, "_problem", "not built")
    assert not module._is_native(x, weight, bias, branch, None)


@needs_native
def test_a_direct_call_refuses_what_does_not_fit():
    x, weight, bias, branch = inputs_of(4, 8)
    norm = torch.ops.vss_kernels.add_norm_cpu
    with pytest.raises(TypeError, match="x must be float32, float16 or bfloat16, got Double"):
        norm(x.double(), weight, bias, None, 0.1, torch.float32)
    with pytest.raises(TypeError, match="dtype must be float32, float16 or bfloat16, got Long"):
        norm(x, weight, bias, None, 0.1, torch.int64)
    with pytest.raises(TypeError, match="weight and bias must be float32, got Half"):
        norm(x, weight.half(), bias, None, 0.1, torch.float32)
    with pytest.raises(ValueError, match=r"weight and bias must have shape \(8\)"):
        norm(x, weight, bias[:7], None, 0.1, torch.float32)
    with pytest.raises(ValueError, match="branch must have the shape of x"):
        norm(x, weight, bias, branch[:3], 0.1, torch.float32)
    with pytest.raises(ValueError, match="x must have at least one channel"):
        norm(x[:, :0], weight[:0], bias[:0], None, 0.1, torch.float32)


@needs_native
def test_fake_tensors_have_its_shape():
    x, weight, bias, branch = inputs_of(2, 5, 16)
    for given in (branch, None):
        torch.library.opcheck(
            torch.ops.vss_kernels.add_norm_cpu.default,
            (x, weight, bias, given, 0.1, torch.bfloat16),
            test_utils=("test_schema", "test_faketensor"),
        )
