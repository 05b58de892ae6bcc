"""upsample_cross_entropy: definition, gradients, layouts and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import vss_kernels
from tests.support.definitions import resize, stored_in_order
from vss_kernels import upsample_cross_entropy

REDUCTIONS = ["mean_all", "mean", "sum", "none"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def losses_by_hand(logits, labels, ignore_index, class_weights, label_smoothing):
    """The loss and the weight of every pixel."""
    upsampled = resize(logits.double(), labels.shape[1:])
    classes = logits.shape[1]
    losses = torch.zeros(labels.shape, dtype=torch.float64)
    weights = torch.zeros(labels.shape, dtype=torch.float64)
    for n, y, x in torch.cartesian_prod(*(torch.arange(size) for size in labels.shape)).tolist():
        label = int(labels[n, y, x])
        if label == ignore_index:
            continue
        scores = upsampled[n, :, y, x].tolist()
        total = math.log(sum(math.exp(score) for score in scores))
        each = [1.0] * classes if class_weights is None else class_weights.tolist()
        smooth = sum(w * (total - score) for w, score in zip(each, scores, strict=True))
        weights[n, y, x] = each[label]
        losses[n, y, x] = (1 - label_smoothing) * each[label] * (
            total - scores[label]
        ) + label_smoothing / classes * smooth
    return losses, weights


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (2, 5, 4, 4, 7, 7)]),
    reduction=st.sampled_from(REDUCTIONS),
    dtype=st.sampled_from(DTYPES),
    label_dtype=st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
    weighted=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    order=st.permutations(range(4)),
    label_order=st.permutations(range(3)),
)
def test_is_the_definition(
    sizes, reduction, dtype, label_dtype, weighted, label_smoothing, order, label_order
):
    batch, classes, height, width, rows, columns = sizes
    logits = torch.randn(batch, classes, height, width).to(dtype)
    labels = torch.randint(classes, (batch, rows, columns), dtype=label_dtype)
    labels[torch.rand(labels.shape) < 0.3] = 100
    labels[0, 0, 0] = 0  # at least one pixel is not ignored
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    class_weights = torch.rand(classes, dtype=wide) + 0.5 if weighted else None
    options = (class_weights, label_smoothing)
    losses, weights = losses_by_hand(logits, labels, 100, *options)
    expected = {
        "none": losses,
        "sum": losses.sum(),
        "mean": losses.sum() / weights.sum(),
        "mean_all": losses.sum() / labels.numel(),
    }[reduction]
    result = upsample_cross_entropy(
        stored_in_order(logits, order),
        stored_in_order(labels, label_order),
        100,
        reduction,
        *options,
    )
    assert result.dtype == wide
    # Half-precision logits are widened first, so their loss is as exact as that of float32 ones.
    precision = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(result.double(), expected, rtol=precision, atol=precision)


def test_mean_is_that_of_torch():
    logits, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 7, 9))
    labels[:, :3] = 255
    upsampled = F.interpolate(logits, size=(7, 9), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, labels, ignore_index=255)
    torch.testing.assert_close(upsample_cross_entropy(logits, labels, reduction="mean"), expected)
    # Ignored pixels count in the denominator of mean_all.
    share = 4 / 7
    torch.testing.assert_close(upsample_cross_entropy(logits, labels), expected * share)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients(reduction):
    logits = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (2, 5, 4))
    labels[0, :2] = 255
    class_weights = torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda t: upsample_cross_entropy(t, labels, 255, reduction, class_weights, 0.1), logits
    )


def test_nothing_but_ignored_pixels_and_no_pixels():
    logits = torch.randn(2, 4, 2, 3, requires_grad=True)
    labels = torch.full((2, 5, 4), 255, dtype=torch.uint8)
    loss = upsample_cross_entropy(logits, labels)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    assert upsample_cross_entropy(logits, labels, reduction="mean").isnan()
    empty = logits[:0], labels[:0]
    assert upsample_cross_entropy(*empty) == 0
    assert upsample_cross_entropy(*empty, reduction="sum") == 0
    assert upsample_cross_entropy(*empty, reduction="none").shape == (0, 5, 4)


def test_labels_may_be_an_expanded_view():
    logits = torch.randn(6, 4, 2, 3)
    labels = torch.randint(4, (1, 5, 4)).expand(6, 5, 4)
    torch.testing.assert_close(
        upsample_cross_entropy(logits, labels), upsample_cross_entropy(logits, labels.contiguous())
    )


def test_a_float16_sum_does_not_overflow():
    logits = torch.zeros(1, 8, 4, 4, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 256, 256, dtype=torch.uint8)
    loss = upsample_cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, torch.tensor(256 * 256 * math.log(8)), rtol=1e-5, atol=0.0)
    loss.backward()
    assert logits.grad.dtype == torch.float16


def test_compiles_without_graph_breaks_at_several_sizes():
    compiled = torch.compile(
        upsample_cross_entropy, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for size in (3, 5):
        logits = torch.randn(2, 4, size, size + 1, requires_grad=True)
        labels = torch.randint(4, (2, 3 * size, 4 * size))
        loss = compiled(logits, labels)
        torch.testing.assert_close(loss, upsample_cross_entropy(logits, labels))
        loss.backward()
        assert logits.grad is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(3, 2, 2)}, ValueError, r"4 dimensions \(N,K,h,w\)"),
        ({"logits": torch.zeros(1, 0, 2, 2)}, ValueError, "at least one class, row and column"),
        ({"logits": torch.zeros(1, 3, 2, 2).int()}, TypeError, "must be float32"),
        ({"labels": torch.zeros(1, 4)}, ValueError, r"labels must have 3 dimensions \(N,H,W\)"),
        ({"labels": torch.zeros(1, 4, 4)}, TypeError, "labels must be uint8.*got torch.float32"),
        ({"labels": torch.zeros(2, 4, 4).long()}, ValueError, r"labels must have shape \(1, "),
        ({"labels": torch.zeros(1, 0, 4).long()}, ValueError, "two positive sizes"),
        ({"labels": torch.full((1, 4, 4), 3)}, ValueError, r"\[0, 3\).*255, got 3 \(16 such"),
        ({"labels": torch.full((1, 4, 4), -1)}, ValueError, r"got -1"),
        ({"reduction": "avg"}, ValueError, "must be one of mean_all, mean, sum, none, got 'avg'"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"class_weights": torch.ones(2)}, ValueError, r"class_weights must have shape \(3\)"),
        ({"class_weights": torch.ones(3).double()}, TypeError, "must be torch.float32 for"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"logits": torch.zeros(1, 3, 2, 2), "labels": torch.zeros(1, 4, 4).long()}
    with pytest.raises(error, match=message):
        upsample_cross_entropy(**{**arguments, **change})
