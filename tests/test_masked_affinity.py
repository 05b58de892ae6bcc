"""masked_affinity: definition, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.layouts import stored_in_order
from vss_kernels import masked_affinity, select_tokens

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def affinity_by_hand(target, reference, index):
    batch, frames, selected = index.shape
    out = torch.zeros(batch, frames, selected, target.shape[1], dtype=torch.float64)
    for b in range(batch):
        for r in range(frames):
            for s in range(selected):
                row = reference[b, r, index[b, r, s]].double()
                for q in range(target.shape[1]):
                    out[b, r, s, q] = (row * target[b, q].double()).sum()
    return out


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 3, 5, 6, 5, 4)]),
    dtype=st.sampled_from([torch.float64, torch.float32, *HALVES]),
)
def test_is_the_definition(data, sizes, dtype):
    batch, frames, tokens, positions, channels, selected = sizes
    target = stored_in_order(
        torch.randn(batch, positions, channels).to(dtype), data.draw(st.permutations(range(3)))
    )
    reference = stored_in_order(
        torch.randn(batch, frames, tokens, channels).to(dtype),
        data.draw(st.permutations(range(4))),
    )
    index = torch.randint(tokens, (batch, frames, selected))  # any order, also repeated
    affinity = masked_affinity(target, reference, index)
    assert affinity.dtype == dtype
    assert affinity.is_contiguous()
    expected = affinity_by_hand(target, reference, index)
    # Sums in float32 at least, so only the result's own rounding shows.
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(
        affinity.double(),
        expected,
        rtol=precision,
        atol=4 * channels * 1e-6 if dtype != torch.float64 else 1e-13,
    )


def test_gradients():
    target = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[[0, 3], [4, 4]], [[2, 1], [0, 4]]])
    assert torch.autograd.gradcheck(lambda *a: masked_affinity(*a, index), (target, reference))


def test_a_clip_without_references():
    batch, frames, positions = 2, 0, 6
    target = torch.randn(batch, positions, 3, requires_grad=True)
    reference = torch.randn(batch, frames, 4, 3)
    index = select_tokens(target, reference, 2)
    assert index.shape == (batch, frames, 2)
    affinity = masked_affinity(target, reference, index)
    assert affinity.shape == (batch, frames, 2, positions)
    affinity.sum().backward()
    assert target.grad is not None
    assert not target.grad.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": torch.zeros(1, 2, 2, dtype=torch.int32)}, TypeError, "index must be int64"),
        ({"index": torch.zeros(1, 2, dtype=torch.int64)}, ValueError, "index must have 3 dim"),
        ({"index": torch.zeros(1, 3, 2, dtype=torch.int64)}, ValueError, r"shape \(1, 2, any\)"),
        ({"index": torch.full((1, 2, 2), 4)}, ValueError, r"must lie in \[0, 4\), got values.*4"),
        ({"index": torch.full((1, 2, 2), -1)}, ValueError, r"must lie in \[0, 4\), got values.*-1"),
        (
            {"index": torch.zeros(1, 2, 2, dtype=torch.int64, device="meta")},
            ValueError,
            "one device",
        ),
        ({"reference": torch.zeros(1, 2, 4, 5)}, ValueError, "reference must have shape"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "target": torch.zeros(1, 6, 3),
        "reference": torch.zeros(1, 2, 4, 3),
        "index": torch.zeros(1, 2, 2, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        masked_affinity(**{**arguments, **change})
