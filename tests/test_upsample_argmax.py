"""upsample_argmax: definition, ties, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support import golden_io
from tests.support.definitions import resize
from tests.support.layouts import stored_in_order
from vss_kernels import upsample_argmax
from vss_kernels._runtime import native

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 5, 4, 4, 9, 9)]),
    through=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(4)),
    align_corners=st.booleans(),
)
def test_is_the_definition(sizes, through, dtype, order, align_corners):
    batch, classes, height, width, rows, columns = sizes
    logits = torch.randn(batch, classes, height, width).to(dtype)
    exact = logits.double()
    for step in ((rows, columns),) if through is None else (through, (rows, columns)):
        exact = resize(exact, step, align_corners)
    arguments = (stored_in_order(logits, order), (rows, columns), through)
    prediction, confidence = upsample_argmax(
        *arguments, confidence=True, align_corners=align_corners
    )
    assert prediction.dtype == torch.uint8
    assert prediction.is_contiguous()
    assert confidence.dtype == torch.float32
    assert confidence.is_contiguous()
    chosen = exact.gather(1, prediction.long()[:, None])[:, 0]
    assert (exact.amax(1) - chosen).max() < 1e-5
    torch.testing.assert_close(confidence.double(), exact.softmax(1).amax(1), rtol=0, atol=1e-5)
    alone = upsample_argmax(*arguments, align_corners=align_corners)
    assert torch.equal(alone, prediction)


def test_lower_class_wins_a_tie():
    logits = torch.tensor([0.0, 3.0, 3.0, 3.0]).reshape(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert (upsample_argmax(logits, (6, 5)) == 1).all()


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int64)])
def test_dtype_holds_the_largest_class(classes, dtype):
    logits = torch.zeros(1, classes, 1, 1)
    logits[:, -1] = 1
    prediction = upsample_argmax(logits, (2, 2))
    assert prediction.dtype == dtype
    assert (prediction == classes - 1).all()


def test_has_no_gradient_and_takes_empty_batches():
    logits = torch.randn(2, 4, 2, 3, requires_grad=True)
    prediction, confidence = upsample_argmax(logits, (5, 6), confidence=True)
    assert not prediction.requires_grad
    assert not confidence.requires_grad
    assert upsample_argmax(logits[:0], (5, 6), (3, 3)).shape == (0, 5, 6)


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize(
    "name", ["cffm_depth1_64x64", "mrcfa_b0_96x128", "mrcfa_b1_96x160", "mrcfa_b2_128x96"]
)
def test_golden_labels_after_two_resizes(name, backend):
    golden = golden_io.load(name).tensors
    height, width = golden["input.clip"].shape[-2:]
    with vss_kernels.backend(backend, "upsample_argmax"):
        classes = upsample_argmax(golden["eval.logits"], (height - 5, width - 3), (height, width))
    assert torch.equal(classes, golden["eval.pred_labels"].reshape(classes.shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 4)}, r"size must be two positive sizes, got \(0, 4\)"),
        ({"through": (4, 4, 4)}, r"through must be two positive sizes, got \(4, 4, 4\)"),
        ({"logits": torch.zeros(1, 3, 0, 2)}, "at least one class, row and column"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"logits": torch.zeros(1, 3, 2, 2), "size": (4, 4)}
    with pytest.raises(ValueError, match=message):
        upsample_argmax(**{**arguments, **change})
