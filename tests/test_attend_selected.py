"""attend_selected: definition, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels import attend_selected


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def attend_by_hand(affinity, value, index):
    batch, frames, selected, positions = affinity.shape
    out = torch.zeros(batch, frames, positions, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for r in range(frames):
            for q in range(positions):
                weights = [affinity[b, r, s, q].double().exp() for s in range(selected)]
                for s in range(selected):
                    row = value[b, r, index[b, r, s]].double()
                    out[b, r, q] += weights[s] / sum(weights) * row
    return out


def make_inputs(sizes, dtype=torch.float32):
    batch, frames, selected, positions, tokens, channels = sizes
    affinity = torch.randn(batch, frames, selected, positions).to(dtype)
    value = torch.randn(batch, frames, tokens, channels).to(dtype)
    return affinity, value, torch.randint(tokens, (batch, frames, selected))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 3, 5, 6, 5, 4)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    affinity_order=st.permutations(range(4)),
    value_order=st.permutations(range(4)),
)
def test_is_the_definition(sizes, dtype, affinity_order, value_order):
    affinity, value, index = make_inputs(sizes, dtype)
    affinity = stored_in_order(affinity, affinity_order)
    value = stored_in_order(value, value_order)
    attended = attend_selected(affinity, value, index)
    assert attended.dtype == dtype
    assert attended.is_contiguous()
    # The probabilities are rounded to the dtype once, and so is the result.
    allowed = 1e-13 if dtype == torch.float64 else 4 * SLACK[dtype]
    scale = value.double().abs().max()
    expected = attend_by_hand(affinity, value, index)
    assert (attended.double() - expected).abs().max() <= allowed * scale


def test_large_affinities_do_not_overflow():
    affinity, value, index = make_inputs((1, 2, 4, 5, 6, 3))
    shifted = attend_selected(affinity + 1e4, value, index)
    exact = attend_selected((affinity + 1e4).double(), value.double(), index)
    assert error(shifted, exact) < 1e-6


def test_gradients():
    affinity, value, index = make_inputs((2, 2, 3, 4, 5, 3), torch.float64)
    inputs = (affinity.requires_grad_(), value.requires_grad_())
    assert torch.autograd.gradcheck(lambda *a: attend_selected(*a, index), inputs)


@pytest.mark.parametrize("sizes", [(2, 0, 3, 4, 5, 6), (2, 1, 3, 0, 5, 6)])
def test_no_references_or_target_tokens(sizes):
    affinity, value, index = make_inputs(sizes)
    value.requires_grad_()
    attended = attend_selected(affinity, value, index)
    assert attended.shape == (sizes[0], sizes[1], sizes[3], sizes[5])
    attended.sum().backward()
    assert value.grad is not None
    assert not value.grad.any()


@pytest.mark.parametrize(
    ("change", "error_type", "message"),
    [
        ({"affinity": torch.zeros(1, 2, 3)}, ValueError, r"4 dimensions \(B,R,S,Q\)"),
        (
            {"value": torch.zeros(1, 3, 5, 6)},
            ValueError,
            r"value must have shape \(1, 2, any, any\)",
        ),
        ({"value": torch.zeros(1, 2, 5, 6).double()}, TypeError, "cast them to one dtype"),
        ({"index": torch.zeros(1, 2, 4).long()}, ValueError, r"index must have shape \(1, 2, 3\)"),
        ({"index": torch.zeros(1, 2, 3)}, TypeError, "index must be int64"),
        ({"index": torch.full((1, 2, 3), 5)}, ValueError, r"must lie in \[0, 5\)"),
    ],
)
def test_bad_input_is_named(change, error_type, message):
    arguments = {
        "affinity": torch.zeros(1, 2, 3, 4),
        "value": torch.zeros(1, 2, 5, 6),
        "index": torch.zeros(1, 2, 3, dtype=torch.int64),
    }
    with pytest.raises(error_type, match=message):
        attend_selected(**{**arguments, **change})
