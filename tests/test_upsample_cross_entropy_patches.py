"""upsample_cross_entropy as a GPU runs it where the labels have four times the sides of the logits.

The emulated GPU chooses between that kernel, which keeps log-sums in base 2, and the general one,
which the instruction sets of a CPU compile too.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.support.emulated_gpu import load_emulated
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels._runtime import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

IGNORED = 127
# (batch, classes, (h, w)); the labels have four times the sides.
SIZES = [
    (2, 19, (9, 12)),  # classes that make no whole group; bands of rows
    (1, 17, (3, 65)),  # more columns than the threads of a block take at once
    (1, 16, (1, 1)),  # nothing but borders
    (1, 70, (2, 3)),  # more classes than the warps of a block
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return load_emulated("upsample_cross_entropy", tmp_path_factory.mktemp("emulated"))


def make_case(size, dtype=torch.float32, scale=3.0, label_dtype=torch.uint8):
    batch, classes, (height, width) = size
    logits = (scale * torch.randn(batch, classes, height, width)).to(dtype)
    labels = torch.randint(classes, (batch, 4 * height, 4 * width), dtype=label_dtype)
    labels[torch.rand(labels.shape) < 0.2] = IGNORED
    labels[:, 0, 0] = 0  # at least one pixel is not ignored
    return logits, labels


def cotangent_of(reduction, labels):
    return torch.randn(labels.shape) if reduction == "none" else torch.tensor(-1.3)


def run(operators, logits, labels, weight=None, reduction="mean", cotangent=None, ignored=IGNORED):
    """Returns loss, gradient and log-sums of ``operators``."""
    if cotangent is None:
        cotangent = torch.ones(())
    loss, log_sums, scale = operators.upsample_cross_entropy(
        logits, labels, weight, ignored, reduction, 0.0, False
    )
    grad = operators.upsample_cross_entropy_backward(
        cotangent, scale, log_sums, logits, labels, weight, ignored, 0.0, False
    )
    return loss, grad, log_sums


def define(logits, labels, weight=None, reduction="mean", cotangent=None, ignored=IGNORED):
    """Returns loss and gradient by definition, in the dtype of the logits."""
    leaf = logits.detach().requires_grad_()
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    upsampled = F.interpolate(leaf.to(wide), labels.shape[1:], mode="bilinear")
    loss = F.cross_entropy(
        upsampled,
        labels.long(),
        weight=None if weight is None else weight.to(wide),
        ignore_index=ignored,
        reduction="sum" if reduction == "mean_all" else reduction,
    )
    if reduction == "mean_all":
        loss = loss / labels.numel()
    cotangent = torch.ones(()) if cotangent is None else cotangent
    return loss.detach(), torch.autograd.grad(loss, leaf, cotangent.to(wide))[0]


def assert_as_accurate_as_eager(emulated, logits, labels, **options):
    """The accuracy rule of ``tests/support/precision.py``."""
    exact, plain = define(logits.double(), labels, **options), define(logits, labels, **options)
    results = run(emulated, logits, labels, **options)[:2]
    for want, eager, have in zip(exact, plain, results, strict=True):
        assert have.dtype == eager.dtype
        assert error(have, want) <= 2 * error(eager, want) + SLACK[logits.dtype]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("reduction", "weighted", "dtype"),
    [
        ("mean_all", False, torch.float32),
        ("mean", True, torch.float32),
        ("none", False, torch.float32),
        ("sum", False, torch.float16),
        ("mean", True, torch.bfloat16),
    ],
    ids=str,
)
def test_is_as_accurate_as_eager(size, reduction, weighted, dtype, emulated):
    logits, labels = make_case(size, dtype)
    weight = torch.rand(size[1]) + 0.5 if weighted else None
    assert_as_accurate_as_eager(
        emulated,
        logits,
        labels,
        weight=weight,
        reduction=reduction,
        cotangent=cotangent_of(reduction, labels),
    )


@pytest.mark.parametrize("reduction", ["mean_all", "none"])
def test_agrees_with_the_general_kernel(reduction, emulated):
    logits, labels = make_case(SIZES[0])
    cotangent = cotangent_of(reduction, labels)
    options = {"reduction": reduction, "cotangent": cotangent}
    loss, grad, log_sums = run(emulated, logits, labels, **options)
    general = run(torch.ops.vss_kernels, logits, labels, **options)
    for have, want in zip((loss, grad, math.log(2) * log_sums), general, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "sides", "smoothing"),
    [
        ((1, 15, (2, 3)), (8, 12), 0.0),  # few classes
        ((1, 19, (2, 3)), (8, 13), 0.0),  # another ratio
        ((1, 19, (2, 3)), (8, 12), 0.1),
    ],
    ids=str,
)
def test_all_else_takes_the_general_kernel(size, sides, smoothing, emulated):
    logits, _ = make_case(size)
    labels = torch.randint(size[1], (1, *sides))
    options = (logits, labels, None, IGNORED, "none", smoothing, False)
    loss, log_sums, _ = emulated.upsample_cross_entropy(*options)
    general_loss, general_log_sums, _ = torch.ops.vss_kernels.upsample_cross_entropy(*options)
    torch.testing.assert_close(loss, general_loss, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(log_sums, general_log_sums, rtol=1e-6, atol=2e-6)


def spread_case(largest):
    logits, labels = make_case((2, 33, (5, 7)), scale=1.0)
    return largest * logits / logits.abs().max(), labels


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("largest", [30.0, 100.0])
def test_large_logits(largest, reduction, emulated):
    logits, labels = spread_case(largest)
    options = {"reduction": reduction, "cotangent": cotangent_of(reduction, labels)}
    assert_as_accurate_as_eager(emulated, logits, labels, **options)


@pytest.mark.parametrize("largest", [1e3, 1e4])
@pytest.mark.parametrize("offset", [0.0, -1.0])
def test_huge_logits(offset, largest, emulated):
    """Their log-sums lose digits that eager keeps; the general kernel's lose no fewer."""
    logits, labels = spread_case(largest if offset == 0.0 else 10.0)
    logits = logits + offset * largest
    exact = define(logits.double(), labels)
    results = run(emulated, logits, labels)
    general = run(torch.ops.vss_kernels, logits, labels)
    for want, other, have in zip(exact, general, results, strict=False):
        lost, allowed = ((value - want).norm() / want.norm() for value in (have, other))
        assert lost <= 2 * allowed + SLACK[torch.float32]


@pytest.mark.parametrize("value", [-math.inf, -3.4e38, -1e9])
def test_a_class_that_is_masked_out(value, emulated):
    logits, labels = make_case(SIZES[0])
    labels[labels == 0] = 1
    logits[:, 0] = value
    masked = logits.clone()
    masked[:, 0] = -1e9
    loss, grad, _ = run(emulated, logits, labels)
    expected_loss, expected_grad = define(masked.double(), labels)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0.0, atol=1e-7)
    assert not grad[:, 0].any()
    # Nearly all of a map may be masked out.
    logits[:, 1:, :5] = value
    labels[:, :24] = IGNORED
    loss, _, _ = run(emulated, logits, labels)
    assert loss.isfinite()


def test_a_label_of_probability_zero_costs_infinitely_much(emulated):
    logits, labels = make_case(SIZES[0])
    logits[:, 3] = -math.inf
    labels[labels == 3] = 2
    labels[1, 20, 21] = 3
    losses, _, _ = run(emulated, logits, labels, reduction="none")
    assert losses[1, 20, 21] == math.inf
    assert losses.isfinite().sum() == losses.numel() - 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_not_overlooked(value, emulated):
    logits, labels = make_case(SIZES[0])
    logits[0, 7, 4, 4] = value
    losses, grad, _ = run(emulated, logits, labels, reduction="none")
    assert not losses[0, 16:20, 16:20][labels[0, 16:20, 16:20] != IGNORED].isfinite().any()
    assert losses[0, :13].isfinite().all()
    assert losses[1].isfinite().all()
    assert not grad[0, :, 4, 4].isfinite().any()


def test_a_label_that_is_no_class_is_not_overlooked(emulated):
    logits, labels = make_case(SIZES[0])
    labels[1, 2, 3] = 60
    losses, grad, log_sums = run(emulated, logits, labels, reduction="none")
    assert losses.isnan().nonzero().tolist() == [[1, 2, 3]]
    assert log_sums.isfinite().all()
    assert grad[1, :, 0].isnan().any()
    assert grad[0].isfinite().all()


@pytest.mark.parametrize("label_dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignored", [-100, 3])
def test_label_types_strides_and_ignored_classes(label_dtype, ignored, emulated):
    logits, labels = make_case(SIZES[0], label_dtype=label_dtype)
    labels[labels == IGNORED] = ignored
    weight = torch.rand(19) + 0.5
    options = {
        "weight": weight,
        "reduction": "none",
        "cotangent": stored_in_order(torch.randn(labels.shape), (1, 2, 0)),
        "ignored": ignored,
    }
    strided = stored_in_order(logits, (2, 0, 3, 1)), stored_in_order(labels, (2, 1, 0))
    assert_as_accurate_as_eager(emulated, *strided, **options)
    plain, moved = run(emulated, logits, labels, **options), run(emulated, *strided, **options)
    for one, other in zip(plain, moved, strict=True):
        assert torch.equal(one, other)


def test_nothing_but_ignored_pixels_has_no_gradient(emulated):
    logits, labels = make_case(SIZES[0])
    loss, grad, _ = run(emulated, logits, torch.full_like(labels, IGNORED))
    assert loss.isnan()
    assert not grad.any()


def test_labels_and_gradients_may_be_expanded(emulated):
    logits, labels = make_case((3, 16, (2, 3)))
    expanded = labels[:1].expand(3, -1, -1)
    cotangent = torch.randn(()).expand(labels.shape)
    plain = run(
        emulated, logits, expanded.contiguous(), reduction="none", cotangent=cotangent.contiguous()
    )
    wide = run(emulated, logits, expanded, reduction="none", cotangent=cotangent)
    torch.testing.assert_close(wide, plain, rtol=1e-6, atol=1e-6)


def test_repeats_bit_for_bit_and_every_map_alone(emulated):
    logits, labels = make_case((3, 19, (9, 12)))
    cotangent = torch.randn(labels.shape)
    options = {"reduction": "none", "cotangent": cotangent}
    first, second = (
        run(emulated, logits, labels, **options),
        run(emulated, logits, labels, **options),
    )
    alone = [
        run(emulated, logits[n : n + 1], labels[n : n + 1], reduction="none",
            cotangent=cotangent[n : n + 1])
        for n in range(3)
    ]  # fmt: skip
    for place, results in enumerate(zip(first, second, strict=True)):
        assert torch.equal(*results)
        assert torch.equal(results[0], torch.cat([result[place] for result in alone]))
