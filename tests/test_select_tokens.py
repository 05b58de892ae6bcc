"""select_tokens: definition, ties, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.layouts import stored_in_order
from vss_kernels import select_tokens

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def choose_by_hand(target, reference, num_selected, top):
    batch, frames, tokens, _ = reference.shape
    chosen = torch.zeros(batch, frames, num_selected, dtype=torch.int64)
    for b in range(batch):
        for r in range(frames):
            scores = []
            for n in range(tokens):
                products = [float(reference[b, r, n] @ row) for row in target[b]]
                scores.append(sum(sorted(products, reverse=True)[:top]))
            best = sorted(range(tokens), key=lambda n: (-scores[n], n))
            chosen[b, r] = torch.tensor(sorted(best[:num_selected]))
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 3, 7, 6, 5)]),
    dtype=st.sampled_from([torch.float64, torch.float32, *HALVES]),
)
def test_selection_is_the_definition_also_with_ties(data, sizes, dtype):
    batch, frames, tokens, positions, channels = sizes
    num_selected = data.draw(st.integers(1, tokens))
    top = data.draw(st.integers(1, positions))
    # Small whole numbers: every product is exact and many scores are equal.
    target = torch.randint(-2, 3, (batch, positions, channels)).to(dtype)
    reference = torch.randint(-2, 3, (batch, frames, tokens, channels)).to(dtype)
    target = stored_in_order(target, data.draw(st.permutations(range(3))))
    reference = stored_in_order(reference, data.draw(st.permutations(range(4))))
    index = select_tokens(target, reference, num_selected, top)
    assert index.dtype == torch.int64
    assert index.is_contiguous()
    assert torch.equal(index, choose_by_hand(target, reference, num_selected, top))


def test_half_precision_products_are_not_rounded_before_the_choice():
    # 2049 is no float16 number: rounded to 2048, token 0 would win the tie.
    target = torch.tensor([[[1.0, 1.0]]], dtype=torch.float16)
    reference = torch.tensor([[[[2048.0, 0.0], [2048.0, 1.0]]]], dtype=torch.float16)
    assert select_tokens(target, reference, 1, 1).item() == 1


def test_scores_that_are_nan_rank_lowest():
    target = torch.ones(1, 2, 1)
    reference = torch.tensor([torch.nan, -3.0, 2.0, torch.nan, -5.0]).reshape(1, 1, 5, 1)
    assert select_tokens(target, reference, 3, 1).tolist() == [[[1, 2, 4]]]
    # Where nothing else is left, the first of them is taken.
    assert select_tokens(target, reference, 4, 1).tolist() == [[[0, 1, 2, 4]]]


def test_the_choice_has_no_gradient():
    target = torch.randn(1, 6, 3, requires_grad=True)
    assert not select_tokens(target, torch.randn(1, 1, 4, 3, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(6, 3)}, ValueError, r"target must have 3 dimensions \(B,Q,C\)"),
        ({"target": None}, TypeError, "target must be a tensor"),
        (
            {"target": torch.zeros(1, 6, 4)},
            ValueError,
            r"reference must have shape \(1, any, any, 4\)",
        ),
        ({"reference": torch.zeros(2, 2, 4, 3)}, ValueError, "reference must have shape"),
        ({"reference": torch.zeros(1, 2, 4, 3).half()}, TypeError, "cast them to one dtype"),
        ({"target": torch.zeros(1, 6, 3, dtype=torch.int64)}, TypeError, "must be float32"),
        ({"num_selected": 0}, ValueError, "num_selected must be between 1 and the 4 tokens.*got 0"),
        ({"num_selected": 5}, ValueError, "num_selected must be between 1 and the 4 tokens.*got 5"),
        ({"top": 0}, ValueError, "top must be between 1 and the 6 target tokens, got 0"),
        ({"top": 7}, ValueError, "top must be between 1 and the 6 target tokens, got 7"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "target": torch.zeros(1, 6, 3),
        "reference": torch.zeros(1, 2, 4, 3),
        "num_selected": 2,
    }
    with pytest.raises(error, match=message):
        select_tokens(**{**arguments, **change})
