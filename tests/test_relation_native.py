"""The native CPU kernels of MRCFA's relation: accuracy, layouts, sizes, errors of direct calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support import golden_operators
from tests.support.layouts import stored_in_order
from tests.support.precision import assert_as_accurate_as_eager, outputs_and_gradients
from vss_kernels import attend_selected, masked_affinity, select_tokens
from vss_kernels._runtime import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# (clips, references, kept tokens, target positions, reference tokens, channels): around the widths
# of registers, tiles and stretches of the instruction sets.
SIZES = {
    "one": (1, 1, 1, 1, 1, 1),
    "less than a register": (2, 1, 2, 3, 4, 3),
    "a register": (1, 2, 7, 16, 9, 16),
    "a stretch": (1, 1, 5, 112, 6, 32),
    "more than a stretch": (1, 2, 15, 131, 17, 33),
    "many stretches": (1, 1, 9, 1201, 12, 40),
    "wide": (2, 3, 20, 45, 33, 100),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def affinity_inputs(size, dtype=torch.float32):
    clips, references, selected, positions, tokens, channels = size
    target = torch.randn(clips, positions, channels).to(dtype)
    reference = torch.randn(clips, references, tokens, channels).to(dtype)
    return target, reference, torch.randint(tokens, (clips, references, selected))


def attention_inputs(size, dtype=torch.float32):
    clips, references, selected, positions, tokens, channels = size
    affinity = torch.randn(clips, references, selected, positions).to(dtype)
    value = torch.randn(clips, references, tokens, channels).to(dtype)
    return affinity, value, torch.randint(tokens, (clips, references, selected))


OPERATORS = {
    "masked_affinity": (masked_affinity, affinity_inputs),
    "attend_selected": (attend_selected, attention_inputs),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATORS)
def test_is_as_accurate_as_eager(name, size, dtype):
    operator, make = OPERATORS[name]
    *tensors, index = make(SIZES[size], dtype)

    def run(*values):
        return operator(*values, index)

    assert_as_accurate_as_eager(run, tensors, name, "native", positive=True)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(OPERATORS)),
    size=st.tuples(*[st.integers(1, top) for top in (2, 3, 6, 40, 7, 36)]),
    order=st.permutations(range(4)),
    empty=st.sampled_from([None, 0, 1, 2, 3]),
)
def test_any_size_and_layout(name, size, order, empty):
    torch.manual_seed(0)
    operator, make = OPERATORS[name]
    size = tuple(0 if position == empty else side for position, side in enumerate(size))
    first, second, index = make(size)
    exact = [first.double(), second.double()]
    with vss_kernels.backend("eager"):
        expected = outputs_and_gradients(lambda *values: operator(*values, index), exact)
    stored = [
        stored_in_order(tensor, [d for d in order if d < tensor.dim()])
        for tensor in (first, second)
    ]
    with vss_kernels.backend("native", name):
        found = outputs_and_gradients(lambda *values: operator(*values, index), stored)
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=2e-5)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 3, 70, 30, 20)]),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
)
def test_selection_is_that_of_eager_also_with_ties(sizes, data, dtype):
    clips, references, tokens, positions, channels = sizes
    kept = data.draw(st.integers(1, tokens))
    top = data.draw(st.integers(1, positions))
    # Small whole numbers: every product is exact and many scores are equal.
    target = torch.randint(-2, 3, (clips, positions, channels)).to(dtype)
    reference = torch.randint(-2, 3, (clips, references, tokens, channels)).to(dtype)
    reference = stored_in_order(reference, data.draw(st.permutations(range(4))))
    with vss_kernels.backend("eager"):
        expected = select_tokens(target, reference, kept, top)
    with vss_kernels.backend("native"):
        assert torch.equal(select_tokens(target, reference, kept, top), expected)


def test_selection_ranks_nan_lowest():
    target = torch.ones(1, 2, 1)
    reference = torch.tensor([torch.nan, -3.0, 2.0, torch.nan, -5.0]).reshape(1, 1, 5, 1)
    with vss_kernels.backend("native"):
        assert select_tokens(target, reference, 3, 1).tolist() == [[[1, 2, 4]]]
        assert select_tokens(target, reference, 4, 1).tolist() == [[[0, 1, 2, 4]]]
        # One that is not among the largest counts, too: nothing says that it would be.
        target[0, 0] = torch.nan
        assert select_tokens(target, reference, 2, 1).tolist() == [[[0, 1]]]


def test_selection_sums_few_affinities():
    tokens = torch.zeros(1, 200, 1)
    with (
        vss_kernels.backend("native"),
        pytest.raises(vss_kernels.BackendError, match="at most 128 affinities of a token"),
    ):
        select_tokens(tokens, tokens[:, None], 1, 129)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(name, wanted):
    operator, make = OPERATORS[name]
    *tensors, index = make((2, 2, 5, 23, 6, 8))
    both = outputs_and_gradients(lambda *values: operator(*values, index), tensors)
    leaf = tensors[wanted].requires_grad_()
    with vss_kernels.backend("native", name):
        one = outputs_and_gradients(
            lambda x: operator(*[x if i == wanted else t for i, t in enumerate(tensors)], index),
            [leaf],
        )
    assert torch.equal(one[1], both[1 + wanted])


def test_affinities_far_apart():
    # Probabilities that vanish must not turn into NaN or leak into the sums.
    affinity, value, index = attention_inputs((1, 2, 9, 35, 12, 8))
    with vss_kernels.backend("native", "attend_selected"):
        attended = attend_selected(100 * affinity, value, index)
    best = value.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, 8)).gather(
        2, affinity.argmax(2).unsqueeze(-1).expand(-1, -1, -1, 8)
    )
    with vss_kernels.backend("eager"):
        expected = attend_selected((100 * affinity).double(), value.double(), index)
    torch.testing.assert_close(attended.double(), expected, rtol=1e-5, atol=1e-5)
    assert (attended - best).abs().median() < 1e-6


def test_nan_is_passed_on():
    affinity, value, index = attention_inputs((1, 1, 4, 40, 5, 8))
    affinity[0, 0, 2, 33] = torch.nan
    with vss_kernels.backend("native", "attend_selected"):
        attended = attend_selected(affinity, value, index)
    assert attended[0, 0, 33].isnan().all()
    assert attended.isnan().sum() == 8


@pytest.mark.parametrize("variant", golden_operators.VARIANTS)
def test_golden_affinity(variant):
    with vss_kernels.backend("native", "select_tokens", *OPERATORS):
        golden_operators.check_relation(variant, "cpu")


@pytest.mark.parametrize("position", [-1, 6])
def test_a_direct_call_reads_nothing_out_of_bounds(position):
    affinity, value, index = attention_inputs((1, 2, 3, 4, 6, 8))
    index[0, 1, 2] = position
    message = rf"index must lie in \[0, 6\), got {position}"
    with pytest.raises(ValueError, match=message):
        torch.ops.vss_kernels.attend_selected_cpu(affinity, value, index)
    with pytest.raises(ValueError, match=message):
        torch.ops.vss_kernels.masked_affinity_cpu(value[:, 0], value, index)


def test_a_direct_call_refuses_what_does_not_fit():
    affinity, value, index = attention_inputs((1, 2, 3, 4, 6, 8))
    with pytest.raises(TypeError, match="index must be int64"):
        torch.ops.vss_kernels.attend_selected_cpu(affinity, value, index.int())
    with pytest.raises(ValueError, match="index must be"):
        torch.ops.vss_kernels.attend_selected_cpu(affinity, value, index[:, :1])
    with pytest.raises(ValueError, match="value must match affinity"):
        torch.ops.vss_kernels.attend_selected_cpu(affinity, value[:, :1], index)
    with pytest.raises(TypeError, match="value is Half but affinity is Float"):
        torch.ops.vss_kernels.attend_selected_cpu(affinity, value.half(), index)
    with pytest.raises(ValueError, match="reference must match target"):
        torch.ops.vss_kernels.masked_affinity_cpu(value[:, 0, :, 1:], value, index)
    with pytest.raises(ValueError, match="index must match reference"):
        torch.ops.vss_kernels.masked_affinity_cpu(value[:, 0], value, index[:, :1])
    for kept, top, message in ((0, 1, "num_selected"), (7, 1, "num_selected"), (1, 7, "top")):
        with pytest.raises(ValueError, match=f"{message} must be between 1 and 6"):
            torch.ops.vss_kernels.select_tokens_cpu(value[:, 0], value, kept, top)
