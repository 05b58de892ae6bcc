"""focal_attention's native CPU kernel: accuracy, registration, layouts, memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.focal_cases import GEOMETRIES, SMALL, flat_inputs, make_inputs, token_inputs
from tests.support.layouts import stored_in_order
from tests.support.precision import assert_as_accurate_as_eager, outputs_and_gradients
from vss_kernels import FocalGeometry, PooledLevel, focal_attention
from vss_kernels._runtime import native
from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.geometry import key_table
from vss_kernels.focal_attention.key_value_layout import as_buffer
from vss_kernels.nn import FocalBlock

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

CASES = {
    "published": (FocalGeometry(), (2, 3), 2, 2, 32),
    "one window": (FocalGeometry(), (1, 1), 2, 1, 4),
    "widest heads": (SMALL, (2, 1), 2, 1, 128),
    "odd heads": (SMALL, (2, 3), 2, 3, 21),
    "largest window": (FocalGeometry(14, 7, (PooledLevel(3, 2),)), (1, 2), 2, 1, 8),
    "no ring, no pooled maps": (FocalGeometry(3, 0, ()), (2, 2), 2, 2, 16),
    "many references": (FocalGeometry(4, 2, tuple(PooledLevel(3, s) for s in range(1, 7))),
                        (2, 2), 2, 1, 8),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_is_as_accurate_as_eager(case, dtype):
    run, inputs = flat_inputs(*CASES[case], dtype)
    assert_as_accurate_as_eager(run, inputs, "focal_attention", "native")


@settings(max_examples=60, deadline=None)
@given(
    geometry=GEOMETRIES,
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    heads=st.integers(1, 3),
    dim=st.integers(1, 20),
    batch=st.integers(0, 2),
    orders=st.tuples(*[st.permutations(range(5))] * 3),
)
def test_any_geometry_size_and_layout(geometry, grid, heads, dim, batch, orders):
    torch.manual_seed(0)
    run, inputs = flat_inputs(geometry, grid, batch, heads, dim)
    with vss_kernels.backend("eager"):
        expected = outputs_and_gradients(run, [tensor.double() for tensor in inputs])
    stored = (
        stored_in_order(tensor, order) for tensor, order in zip(inputs[:3], orders, strict=True)
    )
    with vss_kernels.backend("native"):
        found = outputs_and_gradients(run, [*stored, *inputs[3:]])
    # Inputs are of magnitude one. With few keys the gradients of logits all but cancel, so what
    # they lose to rounding is measured against the inputs and not against what is left.
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 30), width=st.integers(1, 30))
def test_a_block_of_any_height_and_width(height, width):
    torch.manual_seed(0)
    block = FocalBlock(16, 2)
    frames = torch.randn(1, height, width, 16), torch.randn(1, 3, height, width, 16)
    with vss_kernels.backend("eager"):
        expected = block(*frames)
    torch.testing.assert_close(block(*frames), expected, rtol=1e-5, atol=1e-5)


def test_a_single_key_gets_everything():
    geometry = FocalGeometry(1, 0, ())
    query, key_value, bias = (t.requires_grad_() for t in token_inputs(geometry, (3, 2)))
    attended = attend_tokens(query, key_value, bias, geometry)
    torch.testing.assert_close(attended.flatten(1, 2), key_value[:, :, 1], rtol=1e-6, atol=1e-6)
    grad_query, grad = torch.autograd.grad(attended.sum(), (query, key_value))
    torch.testing.assert_close(grad_query, torch.zeros_like(query), rtol=0, atol=1e-5)
    torch.testing.assert_close(grad[:, :, 1], torch.ones_like(grad[:, :, 1]), rtol=1e-6, atol=0)


def test_logits_far_apart():
    # Probabilities that vanish must not turn into NaN or leak into the sums.
    run, inputs = flat_inputs(SMALL, (2, 2), 2, 2, 8)
    inputs = (inputs[0] * 10, inputs[1] * 10, *inputs[2:])
    assert_as_accurate_as_eager(run, inputs, "focal_attention", "native")


def test_nan_is_passed_on():
    query, key_value, bias = token_inputs(SMALL, (1, 1))
    query[0, 1, 2] = float("nan")
    attended = attend_tokens(query, key_value, bias, SMALL)
    assert attended[0, 1, 2].isnan().all()
    assert attended.isnan().sum() == attended[0, 1, 2].numel()


def test_tables_made_in_inference_mode_serve_training():
    geometry = FocalGeometry(3, 1, (PooledLevel(7, 1),))
    inputs = token_inputs(geometry, (1, 3))
    with torch.inference_mode():
        attend_tokens(*inputs, geometry)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    attend_tokens(*leaves, geometry).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_a_broken_table_is_refused():
    query, key_value, bias = token_inputs(SMALL, (1, 2))
    table = key_table(SMALL, (1, 2))
    for slot, position, message in ((0, -1, "holds -1"), (9, key_value.shape[1], "for slot 9")):
        broken = table.clone()
        broken[0, slot] = position
        with pytest.raises(ValueError, match=message):
            torch.ops.vss_kernels.focal_attend(query.flatten(1, 2), key_value, bias, broken)


def test_wrong_buffers_are_refused():
    query, key_value, bias = token_inputs(SMALL, (1, 2))
    with pytest.raises(ValueError, match=r"key_value must have shape \(2, "):
        attend_tokens(query, key_value[:, 1:], bias, SMALL)
    with pytest.raises(TypeError, match=r"bias is torch\.float16"):
        attend_tokens(query, key_value, bias.half(), SMALL)


def test_both_entrances_agree():
    query, key, value, pooled, bias = make_inputs(SMALL, (2, 2))
    buffer = as_buffer([(key, value), *pooled])
    for backend in ("eager", "native"):
        with vss_kernels.backend(backend):
            separate = focal_attention(query, key, value, pooled, bias, SMALL)
            together = attend_tokens(query, buffer, bias, SMALL)
        assert torch.equal(separate, together)
