"""upsample_cross_entropy in native code: accuracy, memory, unusual labels and logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.definitions import resize
from tests.support.layouts import stored_in_order
from tests.support.memory import MIB, peak_memory
from tests.support.precision import SLACK, assert_as_accurate_as_eager, outputs_and_gradients
from tests.support.upsample_cases import ALIGNED_SIZES, DEVICES, DTYPES, SIZES, make_case
from vss_kernels import upsample_cross_entropy
from vss_kernels._runtime import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
LABEL_DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]
REDUCTIONS = ["mean_all", "mean", "sum", "none"]


@pytest.fixture(autouse=True)
def _native():
    with vss_kernels.backend("native"):
        yield


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_loss_is_as_accurate_as_eager(size, reduction, dtype, device):
    logits, labels = make_case(size, dtype, device)
    assert_as_accurate_as_eager(
        lambda t: upsample_cross_entropy(t, labels, ignore_index=127, reduction=reduction),
        (logits,),
        "upsample_cross_entropy",
        "native",
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean_all", "mean"])
def test_class_weights_and_label_smoothing(reduction, label_smoothing, weighted, device):
    logits, labels = make_case(SIZES[0], device=device)
    class_weights = torch.rand(19, device=device) + 0.5 if weighted else None

    def loss(t):
        weights = None if class_weights is None else class_weights.to(t)
        return upsample_cross_entropy(
            t,
            labels.to(t.device),
            weights,
            ignore_index=127,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    assert_as_accurate_as_eager(loss, (logits,), "upsample_cross_entropy", "native")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, *ALIGNED_SIZES], ids=str)
def test_loss_with_aligned_corners(size, dtype, device):
    logits, labels = make_case(size, dtype, device)
    assert_as_accurate_as_eager(
        lambda t: upsample_cross_entropy(t, labels, ignore_index=127, align_corners=True),
        (logits,),
        "upsample_cross_entropy",
        "native",
    )


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(
        st.integers(1, 2), st.integers(2, 18), *[st.integers(1, top) for top in (6, 9, 40, 40)]
    ),
    label_dtype=st.sampled_from(LABEL_DTYPES),
    order=st.permutations(range(4)),
    label_order=st.permutations(range(3)),
    reduction=st.sampled_from(REDUCTIONS),
    label_smoothing=st.sampled_from([0.0, 0.2]),
    align_corners=st.booleans(),
)
def test_loss_at_odd_sizes_and_strides(
    sizes, label_dtype, order, label_order, reduction, label_smoothing, align_corners
):
    batch, classes, height, width, rows, columns = sizes
    size = (batch, classes, (height, width), (rows, columns))
    logits, labels = make_case(size, label_dtype=label_dtype)
    labels = stored_in_order(labels, label_order)
    logits = stored_in_order(logits, order)

    def loss(t):
        return upsample_cross_entropy(
            t,
            labels,
            ignore_index=127,
            reduction=reduction,
            label_smoothing=label_smoothing,
            align_corners=align_corners,
        )

    with vss_kernels.backend("eager"):
        exact = outputs_and_gradients(loss, (logits.double(),))
        eager = outputs_and_gradients(loss, (logits,))
    native_results = outputs_and_gradients(loss, (logits,))
    # A loss is the difference of two logits, a gradient that of a probability and a target. Where
    # one nearly vanishes, its rounding is to be compared with what it is the difference of.
    ones = torch.zeros_like(logits, requires_grad=True)
    spread = resize(ones, size[3], align_corners).sum()
    dependents = torch.autograd.grad(spread, ones)[0].max()  # of one cell, by their weights
    counted = int((labels != 127).sum())
    divisor = {"mean_all": labels.numel(), "mean": counted}.get(reduction, 1)
    terms = 1 if reduction == "none" else counted
    scales = (exact[0].abs().max() + logits.abs().max() * terms / divisor, dependents / divisor)
    for want, plain, have, scale in zip(exact, eager, native_results, scales, strict=True):
        allowed = 2 * (plain - want).abs().max() + SLACK[torch.float32] * scale
        assert (have - want).abs().max() <= allowed


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("ignore_index", [127, -1, -2, 2**32 + 3])
def test_labels_of_every_type_mean_the_same(ignore_index, label_dtype):
    """Where registers hold mixed labels or one, in any layout, and an index that does not fit."""
    logits, labels = make_case((2, 19, (6, 13), (24, 52)), label_dtype=torch.int64)
    labels[0, :, 16:40] = 3  # what the low bits of the last index are
    if label_dtype.is_signed:
        labels[1, 3, 5:7] = torch.tensor([-1, -2])
    labels = labels.to(label_dtype)
    wide = labels.long()
    is_ignored = wide == ignore_index
    is_class = (wide >= 0) & (wide < 19) & ~is_ignored
    expected = torch.nn.functional.cross_entropy(
        resize(logits.double(), (24, 52), False),
        wide.where(is_class, torch.tensor(-100)),
        reduction="none",
    ).float()
    expected[~is_class & ~is_ignored] = torch.nan
    operator = torch.ops.vss_kernels.upsample_cross_entropy
    for layout in (labels, labels.mT.contiguous().mT):
        losses = operator(logits, layout, None, ignore_index, "none", 0.0, False)[0]
        torch.testing.assert_close(losses, expected, equal_nan=True)


@pytest.mark.parametrize("classes", [1, 8, 9, 19])
def test_gradients_are_read_in_any_layout(classes):
    """The incoming ones and the labels; of classes that make no whole group, too."""
    logits, labels = make_case((2, classes, (6, 21), (27, 84)))
    labels[0, :10] = 127  # whole rows that count nothing
    grad = torch.randn(labels.shape)
    operators = torch.ops.vss_kernels
    _, log_sums, scale = operators.upsample_cross_entropy(
        logits, labels, None, 127, "none", 0.0, False
    )
    leaf = logits.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        resize(leaf, (27, 84), False), labels.long(), ignore_index=127, reduction="none"
    )
    (expected,) = torch.autograd.grad(losses, leaf, grad.double())
    results = [
        operators.upsample_cross_entropy_backward(
            incoming, scale, log_sums, logits, stored, None, 127, 0.0, False
        )
        for incoming, stored in (
            (grad, labels),
            (grad.mT.contiguous().mT, labels),
            (grad, labels.mT.contiguous().mT),
        )
    ]
    torch.testing.assert_close(results[0], expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_ignored_pixels_cost_nothing_whatever_their_logits(value):
    logits, labels = make_case((1, 19, (6, 13), (24, 52)))
    labels[0, :16] = 127
    logits[0, 7, 1, 4] = value
    operator = torch.ops.vss_kernels.upsample_cross_entropy
    losses = operator(logits, labels, None, 127, "none", 0.0, False)[0]
    assert not losses[0, :16].any()


def test_expanded_labels_are_not_copied():
    logits, labels = make_case((8, 3, (4, 4), (64, 64)), label_dtype=torch.int64)
    expanded = labels[:1].expand(8, 64, 64)
    loss = upsample_cross_entropy(logits, expanded, ignore_index=127)
    torch.testing.assert_close(
        loss, upsample_cross_entropy(logits, expanded.contiguous(), ignore_index=127)
    )
    operator = torch.ops.vss_kernels.upsample_cross_entropy
    grown = MIB * peak_memory(lambda: operator(logits, expanded, None, 127, "sum", 0.0, False))
    # One float a pixel is kept; a copy of the labels would take another eight bytes.
    assert grown < 8 * 64 * 64 * 5


def test_memory_is_a_fraction_of_the_dense_logits():
    logits, labels = make_case((1, 64, (24, 24), (96, 96)))
    logits.requires_grad_()
    grown = MIB * peak_memory(
        lambda: torch.autograd.grad(
            upsample_cross_entropy(logits, labels, ignore_index=127), logits
        )
    )
    dense = 4 * 64 * 96 * 96
    assert grown < dense / 8


def test_ignored_pixels_have_no_gradient_and_other_labels_may_be_ignored():
    logits, labels = make_case(SIZES[0])
    logits.requires_grad_()
    labels[:, 16:] = 3
    loss = upsample_cross_entropy(logits, labels.clamp(max=18), ignore_index=3, reduction="sum")
    (grad,) = torch.autograd.grad(loss, logits)
    # Output row 15 is the last that counts; it reads source rows up to 4.
    assert grad[:, :, :4].abs().amax((1, 2, 3)).min() > 0
    assert not grad[:, :, 5:].any()


def test_a_single_class_costs_nothing():
    """Its loss and gradient are zero but for rounding, so there is nothing to be relative to."""
    logits, labels = make_case((1, 1, (4, 4), (9, 9)))
    logits.requires_grad_()
    loss = upsample_cross_entropy(logits, labels, ignore_index=127, reduction="sum")
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.abs() < 1e-4
    assert grad.abs().max() < 1e-5


def test_nothing_but_ignored_pixels_and_no_pixels():
    logits, labels = make_case(SIZES[0])
    logits.requires_grad_()
    ignored = torch.full_like(labels, -100, dtype=torch.int64)
    loss = upsample_cross_entropy(logits, ignored, reduction="mean_all")
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    assert upsample_cross_entropy(logits, ignored, reduction="mean").isnan()
    empty = logits[:0], labels[:0]
    assert upsample_cross_entropy(*empty, reduction="mean_all") == 0
    assert upsample_cross_entropy(*empty, reduction="sum") == 0
    assert upsample_cross_entropy(*empty, reduction="mean").isnan()
    assert upsample_cross_entropy(*empty, reduction="none").shape == (0, 36, 48)


def test_a_label_that_is_no_class_is_not_overlooked():
    """On the CPU only a direct call gets past the public function's check; on a GPU each does."""
    logits, labels = make_case(SIZES[0])
    labels[1, 2, 3] = 60
    operator = torch.ops.vss_kernels.upsample_cross_entropy
    losses, log_sums, _ = operator(logits, labels, None, 127, "none", 0.0, False)
    assert losses.isnan().sum() == 1
    assert losses[1, 2, 3].isnan()
    assert log_sums.isfinite().all()
    loss, log_sums, scale = operator(logits, labels, None, 127, "mean_all", 0.0, False)
    assert loss.isnan()
    grad = torch.ops.vss_kernels.upsample_cross_entropy_backward(
        torch.ones(()), scale, log_sums, logits, labels, None, 127, 0.0, False
    )
    assert grad[1, :, 0].isnan().any()
    assert grad[0].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_not_overlooked(value):
    logits, labels = make_case(SIZES[0])
    logits[0, 7, 4, 4] = value
    assert not upsample_cross_entropy(logits, labels, ignore_index=127).isfinite()
