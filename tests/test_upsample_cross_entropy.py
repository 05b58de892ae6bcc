"""upsample_cross_entropy: definition, gradients, layouts and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import vss_kernels
from tests.support.definitions import resize
from tests.support.layouts import stored_in_order
from vss_kernels import upsample_cross_entropy

REDUCTIONS = ["mean_all", "mean", "sum", "none"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def losses_by_hand(logits, labels, ignore_index, weight, label_smoothing, align_corners):
    """Returns the loss and the weight of every pixel."""
    upsampled = resize(logits.double(), labels.shape[1:], align_corners)
    classes = logits.shape[1]
    losses = torch.zeros(labels.shape, dtype=torch.float64)
    weights = torch.zeros(labels.shape, dtype=torch.float64)
    for n, y, x in torch.cartesian_prod(*(torch.arange(size) for size in labels.shape)).tolist():
        label = int(labels[n, y, x])
        if label == ignore_index:
            continue
        scores = upsampled[n, :, y, x].tolist()
        log_sum_exp = math.log(sum(math.exp(score) for score in scores))
        each = [1.0] * classes if weight is None else weight.tolist()
        smooth = sum(w * (log_sum_exp - score) for w, score in zip(each, scores, strict=True))
        weights[n, y, x] = each[label]
        losses[n, y, x] = (1 - label_smoothing) * each[label] * (
            log_sum_exp - scores[label]
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
    align_corners=st.booleans(),
    order=st.permutations(range(4)),
    label_order=st.permutations(range(3)),
)
def test_is_the_definition(
    sizes,
    reduction,
    dtype,
    label_dtype,
    weighted,
    label_smoothing,
    align_corners,
    order,
    label_order,
):
    batch, classes, height, width, rows, columns = sizes
    logits = torch.randn(batch, classes, height, width).to(dtype)
    labels = torch.randint(classes, (batch, rows, columns), dtype=label_dtype)
    labels[torch.rand(labels.shape) < 0.3] = 100
    labels[0, 0, 0] = 0  # at least one pixel is not ignored
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    options = {
        "weight": torch.rand(classes, dtype=wide) + 0.5 if weighted else None,
        "ignore_index": 100,
        "label_smoothing": label_smoothing,
        "align_corners": align_corners,
    }
    losses, weights = losses_by_hand(logits, labels, **options)
    expected = {
        "none": losses,
        "sum": losses.sum(),
        "mean": losses.sum() / weights.sum(),
        "mean_all": losses.sum() / labels.numel(),
    }[reduction]
    result = upsample_cross_entropy(
        stored_in_order(logits, order),
        stored_in_order(labels, label_order),
        reduction=reduction,
        **options,
    )
    assert result.dtype == wide
    # Half-precision logits are widened first, so their loss is as exact as that of float32 ones.
    precision = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(result.double(), expected, rtol=precision, atol=precision)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5])},
        {"ignore_index": 3, "label_smoothing": 0.2},
        {"reduction": "sum"},
        {"reduction": "none"},
    ],
    ids=str,
)
def test_takes_the_place_of_interpolate_and_cross_entropy(options):
    logits, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 7, 9))
    labels[:, :3] = options.get("ignore_index", -100)
    upsampled = F.interpolate(logits, size=(7, 9), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, labels, **options)
    torch.testing.assert_close(upsample_cross_entropy(logits, labels, **options), expected)
    named = upsample_cross_entropy(input=logits, target=labels, **options)
    assert torch.equal(named, upsample_cross_entropy(logits, labels, **options))


def test_weight_is_the_third_argument_as_in_torch_and_no_other_is_positional():
    logits, labels, weight = torch.randn(1, 3, 2, 2), torch.randint(3, (1, 2, 2)), torch.rand(3)
    expected = F.cross_entropy(logits, labels, weight)
    torch.testing.assert_close(upsample_cross_entropy(logits, labels, weight), expected)
    with pytest.raises(TypeError, match="positional"):
        upsample_cross_entropy(logits, labels, weight, 255)


def test_mean_all_counts_ignored_pixels():
    logits, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 7, 9))
    labels[:, :3] = -100
    mean = upsample_cross_entropy(logits, labels)
    mean_all = upsample_cross_entropy(logits, labels, reduction="mean_all")
    torch.testing.assert_close(mean_all, mean * 4 / 7)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients(reduction, align_corners):
    logits = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (2, 5, 4))
    labels[0, :2] = 255
    weight = torch.rand(4, dtype=torch.float64)

    def loss(t):
        return upsample_cross_entropy(
            t,
            labels,
            weight,
            ignore_index=255,
            reduction=reduction,
            label_smoothing=0.1,
            align_corners=align_corners,
        )

    assert torch.autograd.gradcheck(loss, logits)


def test_nothing_but_ignored_pixels_and_no_pixels():
    logits = torch.randn(2, 4, 2, 3, requires_grad=True)
    labels = torch.full((2, 5, 4), -100)
    loss = upsample_cross_entropy(logits, labels, reduction="mean_all")
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    assert upsample_cross_entropy(logits, labels).isnan()
    empty = logits[:0], labels[:0]
    assert upsample_cross_entropy(*empty, reduction="mean_all") == 0
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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(3, 2, 2)}, ValueError, r"4 dimensions \(N,K,h,w\)"),
        ({"input": torch.zeros(1, 0, 2, 2)}, ValueError, "at least one class, row and column"),
        ({"input": torch.zeros(1, 3, 2, 2).int()}, TypeError, "must be float32"),
        ({"target": torch.zeros(1, 4)}, ValueError, r"target must have 3 dimensions \(N,H,W\)"),
        ({"target": torch.zeros(1, 4, 4)}, TypeError, "target must be uint8.*got torch.float32"),
        ({"target": torch.zeros(2, 4, 4).long()}, ValueError, r"target must have shape \(1, "),
        ({"target": torch.zeros(1, 0, 4).long()}, ValueError, "two positive sizes"),
        (
            {"target": torch.full((1, 4, 4), 3)},
            ValueError,
            r"\[0, 3\).*-100, got 3 \(16 such.*ignore_index",
        ),
        ({"target": torch.full((1, 4, 4), -1)}, ValueError, r"got -1"),
        ({"reduction": "avg"}, ValueError, "must be one of mean, mean_all, sum, none, got 'avg'"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"weight": torch.ones(2)}, ValueError, r"weight must have shape \(3\)"),
        ({"weight": torch.ones(3).double()}, TypeError, "must be torch.float32 for"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"input": torch.zeros(1, 3, 2, 2), "target": torch.zeros(1, 4, 4).long()}
    with pytest.raises(error, match=message):
        upsample_cross_entropy(**{**arguments, **change})
