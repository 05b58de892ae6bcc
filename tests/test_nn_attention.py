"""Attention with few keys: what it computes, and where its native kernel runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels._runtime import native
from vss_kernels.nn import attend_few_keys
from vss_kernels.nn import attention as module

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# (batch, queries, keys, heads, channels of a head): around the widths of registers and tiles.
SIZES = {
    "one": (1, 1, 1, 1, 1),
    "odd": (2, 57, 19, 3, 5),
    "published": (1, 130, 405, 2, 32),
    "wide heads": (2, 15, 33, 1, 80),
    "matrix units": (2, 129, 33, 3, 64),
    "one key": (1, 65, 1, 1, 32),
    "no queries": (1, 0, 4, 2, 8),
    "no images": (0, 5, 4, 2, 8),
}


def inputs_of(size):
    batch, queries, keys, heads, dim = size
    return torch.randn(batch, queries, heads, dim), torch.randn(batch, keys, 2, heads, dim)


def plain(query, key_value):
    key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query.transpose(1, 2), key, value).transpose(1, 2)


def definition(query, key_value):
    key, value = key_value.unbind(2)
    logits = torch.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("nhqk,nkhd->nqhd", logits.softmax(-1), value)


@needs_native
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_is_as_accurate_as_pytorch(size, magnitude, dtype):
    query, key_value = (tensor.to(dtype) for tensor in inputs_of(SIZES[size]))
    query = query * magnitude
    assert module._is_native(query, key_value)
    attended = attend_few_keys(query, key_value)
    exact = definition(query.double(), key_value.double())
    assert attended.is_contiguous()
    assert attended.dtype == dtype
    allowed = 2 * error(plain(query, key_value), exact) + SLACK[dtype]
    assert error(attended, exact) <= allowed


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_is_the_same_for_any_number_of_threads_and_layout(dtype):
    query, key_value = (tensor.to(dtype) for tensor in inputs_of((2, 300, 40, 2, 32)))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(attend_few_keys(query, key_value))
    torch.set_num_threads(before)
    results.append(
        attend_few_keys(
            stored_in_order(query, (3, 1, 0, 2)), stored_in_order(key_value, range(4, -1, -1))
        )
    )
    assert all(torch.equal(result, results[0]) for result in results[1:])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_is_passed_on(dtype):
    query, key_value = (tensor.to(dtype) for tensor in inputs_of((1, 20, 9, 2, 32)))
    query[0, 11, 1, 3] = torch.nan
    attended = attend_few_keys(query, key_value)
    assert attended[0, 11, 1].isnan().all()
    assert attended.isnan().sum() == 32


@needs_native
def test_autocast_narrows_what_comes():
    query, key_value = inputs_of((1, 9, 6, 2, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            attend_few_keys(query, key_value.bfloat16()),
            attend_few_keys(query.bfloat16(), key_value.bfloat16()),
        )


def test_all_else_is_pytorchs(monkeypatch):
    query, key_value = inputs_of((1, 9, 6, 2, 8))
    gradient = query.clone().requires_grad_()
    assert not module._is_native(gradient, key_value)
    assert not module._is_native(query.double(), key_value.double())
    assert not module._is_native(query.to("meta"), key_value.to("meta"))
    assert not module._is_native(query, key_value[:, :0])
    with vss_kernels.backend("eager"):
        assert not module._is_native(query, key_value)
        assert torch.equal(attend_few_keys(query, key_value), plain(query, key_value))
    monkeypatch.setattr(native, "_problem", "not built")
    assert not module._is_native(query, key_value)
    attend_few_keys(gradient, key_value).sum().backward()
    assert gradient.grad is not None


def test_a_compiler_sees_pytorchs_attention():
    class Attend(torch.nn.Module):
        def forward(self, query, key_value):
            return attend_few_keys(query, key_value)

    inputs = inputs_of((1, 9, 6, 2, 8))
    program = torch.export.export(Attend(), inputs)
    assert "scaled_dot_product_attention" in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), attend_few_keys(*inputs))


@needs_native
def test_a_direct_call_refuses_what_does_not_fit():
    query, key_value = inputs_of((1, 9, 6, 2, 8))
    attend = torch.ops.vss_kernels.reduced_attention_cpu
    with pytest.raises(TypeError, match="query must be float32, float16 or bfloat16, got Double"):
        attend(query.double(), key_value.double())
    with pytest.raises(TypeError, match="key_value is Half but query is Float"):
        attend(query, key_value.half())
    for wrong in (key_value[:, :, :1], key_value[:, :0], key_value[..., :4], key_value[:0]):
        with pytest.raises(ValueError, match=r"key_value must be \(1, at least 1, 2, 2, 8\)"):
            attend(query, wrong)


@needs_native
def test_fake_tensors_have_its_shape():
    query, key_value = inputs_of((1, 9, 6, 2, 8))
    torch.library.opcheck(
        torch.ops.vss_kernels.reduced_attention_cpu.default,
        (query, key_value),
        test_utils=("test_schema", "test_faketensor"),
    )
