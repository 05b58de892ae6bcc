"""select_tokens and masked_affinity: definition, ties, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.definitions import stored_in_order
from vss_kernels import masked_affinity, select_tokens

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
def test_affinity_is_the_definition(data, sizes, dtype):
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


def test_affinity_gradients():
    target = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[[0, 3], [4, 4]], [[2, 1], [0, 4]]])
    assert torch.autograd.gradcheck(lambda *a: masked_affinity(*a, index), (target, reference))


@pytest.mark.parametrize(("batch", "frames", "positions"), [(0, 2, 6), (2, 0, 6)])
def test_empty_inputs(batch, frames, positions):
    target = torch.randn(batch, positions, 3, requires_grad=True)
    reference = torch.randn(batch, frames, 4, 3)
    index = select_tokens(target, reference, 2)
    assert index.shape == (batch, frames, 2)
    affinity = masked_affinity(target, reference, index)
    assert affinity.shape == (batch, frames, 2, positions)
    affinity.sum().backward()
    assert target.grad is not None
    assert not target.grad.any()


def test_autocast_narrows_the_affinity_and_widens_the_gradient():
    target = torch.randn(1, 6, 3, requires_grad=True)
    reference = torch.randn(1, 2, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        index = select_tokens(target, reference, 2)
        affinity = masked_affinity(target, reference, index)
    narrow = (target.bfloat16(), reference.bfloat16())
    assert torch.equal(index, select_tokens(*narrow, 2))
    assert affinity.dtype == torch.bfloat16
    assert torch.equal(affinity, masked_affinity(*narrow, index))
    affinity.sum().backward()
    assert target.grad is not None
    assert target.grad.dtype == torch.float32


def test_compiles_without_graph_breaks_at_several_sizes():
    def both(target, reference):
        index = select_tokens(target, reference, 3)
        return masked_affinity(target, reference, index)

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens, positions in ((6, 20), (9, 35)):
        target = torch.randn(2, positions, 8, requires_grad=True)
        reference = torch.randn(2, 3, tokens, 8)
        affinity = compiled(target, reference)
        torch.testing.assert_close(affinity, both(target, reference))
        affinity.sum().backward()
        assert target.grad is not None


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
def test_select_tokens_names_bad_input(change, error, message):
    arguments = {
        "target": torch.zeros(1, 6, 3),
        "reference": torch.zeros(1, 2, 4, 3),
        "num_selected": 2,
    }
    with pytest.raises(error, match=message):
        select_tokens(**{**arguments, **change})


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
def test_masked_affinity_names_bad_input(change, error, message):
    arguments = {
        "target": torch.zeros(1, 6, 3),
        "reference": torch.zeros(1, 2, 4, 3),
        "index": torch.zeros(1, 2, 2, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        masked_affinity(**{**arguments, **change})
