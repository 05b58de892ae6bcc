"""upsample_argmax in native code, against eager and double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.layouts import stored_in_order
from tests.support.upsample_cases import (
    ALIGNED_SIZES,
    DEVICES,
    DTYPES,
    SIZES,
    assert_same_but_for_rounding,
    make_case,
)
from vss_kernels import upsample_argmax
from vss_kernels._runtime import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))


@pytest.fixture(autouse=True)
def _native():
    with vss_kernels.backend("native"):
        yield


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("through", [None, (31, 50), (3, 4), "size"], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_argmax_equals_eager_but_for_rounding(size, through, dtype, device):
    logits, _ = make_case(size, dtype, device)
    through = size[3] if through == "size" else through
    assert_same_but_for_rounding(logits, size[3], through)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 9, 9, 9, 40, 40)]),
    through=st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    order=st.permutations(range(4)),
    align_corners=st.booleans(),
)
def test_argmax_at_odd_sizes_and_strides(sizes, through, order, align_corners):
    batch, classes, height, width, rows, columns = sizes
    logits = stored_in_order(torch.randn(batch, classes, height, width), order)
    assert_same_but_for_rounding(logits, (rows, columns), through, align_corners)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("through", [None, (31, 50), (3, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("size", [*SIZES, *ALIGNED_SIZES], ids=str)
def test_argmax_with_aligned_corners(size, through, device):
    logits, _ = make_case(size, device=device)
    assert_same_but_for_rounding(logits, size[3], through, align_corners=True)


@pytest.mark.parametrize("align_corners", [False, True])
def test_argmax_in_steps_close_to_one(align_corners):
    """Sizes where rounding decides which neighbours a position reads."""
    logits = torch.randn(1, 3, 2, 1500)
    assert_same_but_for_rounding(logits, (3, 1502), (2, 1501), align_corners)
    logits = torch.randn(1, 3, 1000, 2)
    assert_same_but_for_rounding(logits, (1002, 3), (1001, 2), align_corners)


# (classes, (h, w), through, (H, W), align_corners): sizes that the GPU's kernel takes, where output
# rows and columns read few neighbours, and its borders.
FEW_NEIGHBOURS = [
    (9, (6, 7), None, (24, 28), False),  # four rows between two source rows
    (6, (6, 27), (24, 108), (24, 107), False),  # columns resized twice, to 853 say
    (7, (12, 16), (48, 64), (72, 96), False),  # both resized twice
    (5, (5, 4), None, (15, 200), False),  # several blocks
    (5, (7, 9), None, (12, 14), False),
    (300, (4, 3), None, (16, 12), False),  # more classes than a byte holds, and as few columns
    (2, (2, 3), None, (8, 9), False),  # as few rows
    (3, (1, 5), None, (4, 20), False),  # fewer
    (6, (4, 5), None, (16, 20), True),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", FEW_NEIGHBOURS, ids=str)
def test_argmax_of_few_neighbours(case, dtype, device):
    classes, small, through, large, align_corners = case
    logits = (3 * torch.randn(2, classes, *small)).to(device, dtype)
    assert_same_but_for_rounding(logits, large, through, align_corners)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(16, 20), (8, 30)], ids=str)
def test_infinities_and_nan_win_as_in_torch(size, device):
    logits = torch.randn(2, 6, 4, 5)
    drawn = torch.rand(logits.shape)
    logits[drawn < 0.1] = -torch.inf
    logits[drawn > 0.98] = torch.inf
    logits[0, 3, 1, 2] = torch.nan
    logits[1, :5] = -torch.inf  # all but one class ruled out
    logits[1, 5] = 1.0
    # Twice and four times: no weight is rounded, so that zeros meet infinities in the same places.
    expected = torch.nn.functional.interpolate(logits, size, mode="bilinear").argmax(1)
    classes = upsample_argmax(logits.to(device), size)
    assert torch.equal(classes.cpu().long(), expected)


def test_ties_many_classes_and_nan():
    logits = torch.tensor([0.0, 3.0, 3.0, 3.0]).reshape(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert (upsample_argmax(logits, (6, 5)) == 1).all()
    wide = torch.zeros(1, 300, 1, 1)
    wide[:, 299] = 1
    classes = upsample_argmax(wide, (2, 2))
    assert classes.dtype == torch.int64
    assert (classes == 299).all()
    broken = torch.randn(1, 5, 2, 2)
    broken[:, 2] = broken[:, 3] = float("nan")
    classes, confidence = upsample_argmax(broken, (4, 4), confidence=True)
    assert (classes == 2).all()  # as torch.argmax: the first NaN
    assert confidence.isnan().all()
