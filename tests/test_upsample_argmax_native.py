"""upsample_argmax as a native block program, against the eager operator and double precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import vss_kernels
from tests.support import golden_io
from tests.support.definitions import resize, stored_in_order
from tests.support.precision import SLACK, error
from tests.support.upsample_cases import DEVICES, DTYPES, SIZES, make_case
from vss_kernels import upsample_argmax
from vss_kernels._runtime import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))


@pytest.fixture(autouse=True)
def _native():
    with vss_kernels.backend("native"):
        yield


def dense_logits(logits, size, through, resize_once):
    for step in (through, size) if through is not None else (size,):
        logits = resize_once(logits, step)
    return logits


def assert_same_but_for_rounding(logits, size, through):
    """Labels equal eager's wherever the best logit leads by more than rounding may change."""
    classes, confidence = upsample_argmax(logits, size, through, confidence=True)
    with vss_kernels.backend("eager"):
        expected, expected_confidence = upsample_argmax(logits, size, through, confidence=True)
    exact = dense_logits(logits.double().cpu(), size, through, resize)
    rounded = dense_logits(
        logits.float().cpu(), size, through, partial(F.interpolate, mode="bilinear")
    )
    # What eager loses itself, and the last digits of the products.
    slack = 2 * float((rounded - exact).abs().max()) + 1e-6 * float(exact.abs().max())
    best = exact.topk(min(2, exact.shape[1]), dim=1).values
    leads = (best[:, 0] - best[:, -1] > slack) | (exact.shape[1] == 1)
    assert torch.equal(classes.cpu()[leads], expected.cpu()[leads])
    chosen = exact.gather(1, classes.long().cpu()[:, None])[:, 0]
    assert (best[:, 0] - chosen).max() <= slack
    probability = exact.softmax(1).amax(1)
    lost = error(expected_confidence, probability)
    assert error(confidence, probability) <= 2 * lost + SLACK[torch.float32]
    assert torch.equal(upsample_argmax(logits, size, through), classes)
    assert classes.dtype == expected.dtype
    assert classes.is_contiguous()
    assert confidence.is_contiguous()


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
)
def test_argmax_at_odd_sizes_and_strides(sizes, through, order):
    batch, classes, height, width, rows, columns = sizes
    logits = stored_in_order(torch.randn(batch, classes, height, width), order)
    assert_same_but_for_rounding(logits, (rows, columns), through)


def test_argmax_in_steps_close_to_one():
    """Sizes where rounding decides which neighbours a position reads."""
    logits = torch.randn(1, 3, 2, 1500)
    assert_same_but_for_rounding(logits, (3, 1502), (2, 1501))
    logits = torch.randn(1, 3, 1000, 2)
    assert_same_but_for_rounding(logits, (1002, 3), (1001, 2))


@pytest.mark.parametrize(
    "name", ["cffm_depth1_64x64", "mrcfa_b0_96x128", "mrcfa_b1_96x160", "mrcfa_b2_128x96"]
)
def test_golden_labels_after_two_resizes(name):
    golden = golden_io.load(name).tensors
    height, width = golden["input.clip"].shape[-2:]
    classes = upsample_argmax(golden["eval.logits"], (height - 5, width - 3), (height, width))
    assert torch.equal(classes, golden["eval.pred_labels"].reshape(classes.shape))


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
