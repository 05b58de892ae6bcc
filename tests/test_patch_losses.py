"""patch: upsampling before a loss or argmax, inside a model and outside of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vss_kernels
from tests.support.foreign_modules import (
    CHANNELS,
    ConvolutionHead,
    LinearHead,
    make_levels,
    make_upsampling_head,
)
from tests.support.memory import MIB, peak_memory
from vss_kernels.patch.deferred import DeferUpsampling, UpsampledLogits
from vss_kernels.patch.kinds import kinds_of

HEADS = {"linear": LinearHead, "convolutions": ConvolutionHead}


@pytest.mark.parametrize("kind", HEADS)
def test_losses_of_mmsegmentation_style(kind):
    head = HEADS[kind](CHANNELS, 10, 7, dropout=0.0)
    labels = torch.randint(7, (2, 1, 64, 96))
    labels[:, :, :9] = 255
    levels = make_levels(torch.float32)

    def losses():
        logits = head(levels)
        if kind == "linear":
            answer = head.losses(logits, labels)
        else:
            answer = head.loss_by_feat(logits, [{"gt_sem_seg": label} for label in labels])
        return answer, torch.autograd.grad(answer["loss_seg"], levels)

    expected, gradients = losses()
    vss_kernels.patch(head)
    assert len(kinds_of(head)) == 2 + (kind == "convolutions")
    answer, patched_gradients = losses()
    for name, value in expected.items():
        torch.testing.assert_close(answer[name], value)
    for have, want in zip(patched_gradients, gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6)
    with vss_kernels.backend("native", "upsample_cross_entropy"):
        head.double()  # which the native backend refuses: the operator is called
        levels = make_levels(torch.float64)
        with pytest.raises(vss_kernels.BackendError, match="upsample_cross_entropy"):
            losses()
        assert vss_kernels.unpatch(head) == 1
        losses()


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_upsampled_only_where_something_needs_them(align_corners):
    head = make_upsampling_head(align_corners)
    x, labels = torch.randn(2, 6, 8, 9), torch.randint(5, (2, 32, 36))
    expected = head(x)
    vss_kernels.patch(head)
    logits = head(x)
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == expected.shape
    assert logits.size(1) == 5
    assert logits.requires_grad
    assert (logits.dtype, logits.device) == (expected.dtype, expected.device)
    for options in ({}, {"weight": torch.rand(5)}, {"ignore_index": 2}, {"reduction": "none"}):
        loss = F.cross_entropy(logits, labels, **options)
        torch.testing.assert_close(loss, F.cross_entropy(expected, labels, **options))
    torch.testing.assert_close(
        nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels),
        nn.CrossEntropyLoss(label_smoothing=0.1)(expected, labels),
    )
    for classes in (logits.argmax(1), logits.argmax(dim=1), torch.argmax(logits, 1, keepdim=False)):
        assert torch.equal(classes, expected.argmax(1))
    assert torch.equal(logits.argmax(1, keepdim=True), expected.argmax(1, keepdim=True))
    assert logits.dense is None
    torch.testing.assert_close(logits.softmax(1), expected.softmax(1))
    assert logits.dense is not None
    torch.testing.assert_close(logits + 0, expected)
    assert torch.equal(logits.argmax(), expected.argmax())


def loss_by_log_softmax(logits, labels):
    return F.nll_loss(F.log_softmax(logits, 1), labels)


def loss_with_probabilities(logits, labels):
    targets = F.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    return F.cross_entropy(logits, targets)


def loss_after_change_in_place(logits, labels):
    logits.mul_(0.5)
    return F.cross_entropy(logits, labels)


class Half(torch.autograd.Function):
    """A function that no override of tensors sees."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone() / 2

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def loss_through_a_custom_function(logits, labels):
    return F.cross_entropy(Half.apply(logits), labels)


def loss_after_a_metric_without_gradient(logits, labels):
    with torch.no_grad():
        logits.topk(2, dim=1)
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        loss_by_log_softmax,
        loss_with_probabilities,
        loss_after_change_in_place,
        loss_through_a_custom_function,
        loss_after_a_metric_without_gradient,
    ],
)
def test_gradients_whatever_is_done_with_the_logits(loss):
    head = make_upsampling_head()
    x, labels = torch.randn(2, 6, 8, 9, requires_grad=True), torch.randint(5, (2, 32, 36))
    leaves = [x, *head.parameters()]
    expected = loss(head(x), labels)
    gradients = torch.autograd.grad(expected, leaves)
    vss_kernels.patch(head)
    value = loss(head(x), labels)
    torch.testing.assert_close(value, expected)
    for have, want in zip(torch.autograd.grad(value, leaves), gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6)


def test_a_wrong_label_is_named_and_half_precision_keeps_its_dtype():
    head = make_upsampling_head().bfloat16()
    vss_kernels.patch(head)
    logits = head(torch.randn(1, 6, 4, 4, dtype=torch.bfloat16))
    assert F.cross_entropy(logits, torch.zeros(1, 16, 16).long()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="got 9"):
        F.cross_entropy(logits, torch.full((1, 16, 16), 9))
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(head(torch.randn(1, 6, 4, 4)), torch.zeros(1, 16, 16).long())
    assert loss.dtype == torch.float32


def test_memory_of_the_loss_falls():
    head = nn.Sequential(nn.Conv2d(4, 64, 1), nn.Upsample(scale_factor=4, mode="bilinear"))
    x, labels = torch.randn(1, 4, 24, 24), torch.randint(64, (1, 96, 96))

    def step():
        F.cross_entropy(head(x), labels).backward()

    before = peak_memory(step)
    vss_kernels.patch(head)
    assert before > 2 * 4 * 64 * 96 * 96 / MIB
    assert peak_memory(step) < before / 4


@pytest.mark.parametrize(
    ("resize", "deferred"),
    [
        ({"size": (9, 7)}, True),
        ({"size": 9}, True),
        ({"scale_factor": 1.5}, True),
        ({"scale_factor": (2, 3), "align_corners": True}, True),
        ({"scale_factor": 1.3}, False),  # where PyTorch resizes by the scale, not by the sizes
        ({"size": (9, 7), "antialias": True}, False),
        ({"size": (9, 7), "mode": "nearest"}, False),
    ],
)
def test_only_what_the_operators_compute_is_deferred(resize, deferred):
    logits = torch.randn(1, 3, 4, 6)
    options = {"mode": "bilinear", **resize}
    expected = F.interpolate(logits, **options)
    with DeferUpsampling(3):
        resized = F.interpolate(logits, **options)
        others = F.interpolate(logits[:, :2], **options)
    assert isinstance(resized, UpsampledLogits) == deferred
    assert type(others) is torch.Tensor
    torch.testing.assert_close(resized + 0, expected)


def test_an_activation_behind_the_upsampling_is_refused():
    head = make_upsampling_head(last=nn.Softmax(1))
    with pytest.raises(vss_kernels.PatchError, match="Softmax follows the upsampling"):
        vss_kernels.patch(head)


def test_a_traced_head_is_computed_by_the_original():
    head = make_upsampling_head()
    x, labels = torch.randn(1, 6, 4, 4), torch.randint(5, (1, 16, 16))
    expected = F.cross_entropy(head(x), labels)
    vss_kernels.patch(head)
    compiled = torch.compile(
        lambda x, labels: F.cross_entropy(head(x), labels), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x, labels), expected)
    assert torch.export.export(head, (x,)).module()(x).shape == (1, 5, 16, 16)
