"""patch: all-MLP fusion heads, and upsampling before a loss, without other libraries."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vss_kernels
from tests.support.foreign_modules import ConvolutionHead, LinearHead
from tests.support.memory import MIB, peak_memory
from vss_kernels.patch.deferred import DeferUpsampling, UpsampledLogits
from vss_kernels.patch.kinds import kinds_of

CHANNELS = (8, 12, 16, 20)
HEADS = {"linear": LinearHead, "convolutions": ConvolutionHead}


def make_levels(dtype=torch.float64):
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    return [
        torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
        for channels, size in zip(CHANNELS, sizes, strict=True)
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_fusion_heads_keep_answers_and_gradients(kind, align_corners, training):
    head = HEADS[kind](CHANNELS, 10, 7, align_corners).double().train(training)
    levels, cotangent = make_levels(), torch.randn(2, 7, 16, 24, dtype=torch.float64)
    used = [p for name, p in head.named_parameters() if kind != "linear" or "conv_seg" not in name]

    def run():
        torch.manual_seed(0)  # the same channels are dropped
        logits = head(levels)
        return logits, torch.autograd.grad(logits, [*levels, *used], cotangent)

    statistics = copy.deepcopy(head.state_dict())
    expected, gradients = run()
    moved = copy.deepcopy(head.state_dict())
    head.load_state_dict(statistics)
    report = vss_kernels.patch(head, ["fuse_pyramid"])
    assert len(report.replaced) == 1
    logits, patched_gradients = run()
    torch.testing.assert_close(logits, expected)
    for have, want in zip(patched_gradients, gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-12)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, moved[name], msg=name)


def test_a_fusion_head_no_longer_makes_the_concatenation():
    head = LinearHead(CHANNELS, 64, 7).eval()
    levels = [level.detach().float() for level in make_levels()]
    with torch.no_grad():
        before = peak_memory(lambda: head(levels))
        vss_kernels.patch(head, ["fuse_pyramid"])
        assert peak_memory(lambda: head(levels)) < 0.6 * before


class Resized(LinearHead):
    """Computes something else than a fusion of levels."""

    def forward(self, inputs):
        return 1.01 * super().forward(inputs)


class Temporal(LinearHead):
    """Has more parts, as the heads of MRCFA and CFFM."""

    def __init__(self):
        super().__init__(CHANNELS, 10, 7)
        self.sr2 = nn.Conv2d(10, 10, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda head: setattr(head, "linear_fuse", nn.Sequential(nn.Conv2d(40, 10, 3))), "1x1"),
        (lambda head: setattr(head, "linear_fuse", nn.Sequential(nn.Conv2d(39, 10, 1))), "39 chan"),
        (lambda head: setattr(head, "__class__", Resized), "computes something else"),
        (lambda head: head.linear_c1.register_forward_hook(lambda *_: None), "has hooks"),
        (lambda head: delattr(head, "dropout"), "trying it failed: AttributeError"),
    ],
)
def test_other_heads_are_refused_with_the_reason(change, reason):
    head = LinearHead(CHANNELS, 10, 7)
    change(head)
    with pytest.raises(vss_kernels.PatchError, match=reason):
        vss_kernels.patch(head, ["fuse_pyramid"])
    assert not kinds_of(head)


def test_heads_with_more_parts_are_none_of_these():
    with pytest.raises(vss_kernels.PatchError, match="found nothing for fuse_pyramid"):
        vss_kernels.patch(Temporal(), ["fuse_pyramid"])
    report = vss_kernels.patch(Temporal(), ["fuse_pyramid"], strict=False)
    assert (report.replaced, report.refused) == ((), ())
    assert str(report) == "vss_kernels.patch: found nothing to replace"


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
        head.align_corners = True  # which the native backend refuses: the operator is called
        with pytest.raises(vss_kernels.BackendError, match="upsample_cross_entropy"):
            losses()
        assert vss_kernels.unpatch(head) == 1
        losses()


def make_upsampling_head(align_corners=False, last=None):
    upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=align_corners)
    return nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), upsample, last or nn.Identity())


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


def test_a_patched_fusion_head_compiles_without_graph_breaks():
    head = LinearHead(CHANNELS, 10, 7).eval()
    levels = make_levels(torch.float32)
    expected = head(levels)
    vss_kernels.patch(head, ["fuse_pyramid"])
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(levels), expected, rtol=1e-4, atol=1e-5)


def test_patching_twice_changes_nothing_more_and_copies_and_pickles_stay_patched():
    head = LinearHead(CHANNELS, 10, 7).eval()
    signature = inspect.signature(head.forward)
    first = vss_kernels.patch(head, verbose=False)
    again = vss_kernels.patch(head, verbose=False)
    assert first == again
    assert isinstance(head, LinearHead)
    assert inspect.signature(head.forward) == signature
    assert type(head).__name__ == "LinearHead"
    levels = make_levels(torch.float32)
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    for other in (
        copy.deepcopy(head),
        pickle.loads(pickle.dumps(head)),
        torch.load(file, weights_only=False),
    ):
        assert kinds_of(other) == kinds_of(head)
        assert torch.equal(other(levels), head(levels))
        assert vss_kernels.unpatch(other) == 1
        assert type(other) is LinearHead
    assert kinds_of(head)


def test_strict_needs_every_named_operator_and_leaves_the_model_as_it_was(capsys):
    head = make_upsampling_head()
    with pytest.raises(vss_kernels.PatchError, match="found nothing for focal_attention"):
        vss_kernels.patch(head, ["upsample_cross_entropy", "focal_attention"])
    assert not kinds_of(head)
    with pytest.raises(ValueError, match="unknown operator 'softmax'; choose from aggregate_aff"):
        vss_kernels.patch(head, ["softmax"])
    report = vss_kernels.patch(nn.ModuleDict({"head": head}), ["upsample_cross_entropy"])
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert "replaced 1 of 1 parts\n  replaced      head: upsampling at the end" in printed
