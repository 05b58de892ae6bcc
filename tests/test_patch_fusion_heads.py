"""patch: all-MLP fusion heads of several libraries' layouts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vss_kernels
from tests.support.foreign_modules import (
    CHANNELS,
    ConvolutionHead,
    LinearHead,
    ProjectionsHead,
    make_levels,
)
from tests.support.memory import peak_memory
from vss_kernels.patch.kinds import kinds_of

FUSIONS = [
    *(
        (head, (align_corners,))
        for head in (LinearHead, ConvolutionHead)
        for align_corners in (False, True)
    ),
    (ProjectionsHead, ()),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "options"), FUSIONS)
def test_fusion_heads_keep_answers_and_gradients(kind, options, training):
    head = kind(CHANNELS, 10, 7, *options).double().train(training)
    levels, cotangent = make_levels(), torch.randn(2, 7, 16, 24, dtype=torch.float64)
    unused = "conv_seg" if kind is LinearHead else "none"
    used = [parameter for name, parameter in head.named_parameters() if unused not in name]

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


def test_nothing_found_is_said():
    with pytest.raises(vss_kernels.PatchError, match="found nothing for fuse_pyramid"):
        vss_kernels.patch(nn.Linear(2, 2), ["fuse_pyramid"])
    report = vss_kernels.patch(nn.Linear(2, 2), ["fuse_pyramid"], strict=False)
    assert (report.replaced, report.refused) == ((), ())
    assert str(report) == "vss_kernels.patch: found nothing to replace"


def test_levels_may_be_passed_by_name():
    head = ProjectionsHead(CHANNELS, 10, 7).double().eval()
    levels = make_levels()
    expected = head(levels)
    vss_kernels.patch(head)
    torch.testing.assert_close(head(encoder_hidden_states=levels), expected)


def test_a_patched_fusion_head_compiles_without_graph_breaks():
    head = LinearHead(CHANNELS, 10, 7).eval()
    levels = make_levels(torch.float32)
    expected = head(levels)
    vss_kernels.patch(head, ["fuse_pyramid"])
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(levels), expected, rtol=1e-4, atol=1e-5)


def test_torchscript_is_refused():
    levels = [level.detach().float() for level in make_levels()]
    head = torch.jit.trace(ProjectionsHead(CHANNELS, 10, 7).eval(), (levels,))
    with pytest.raises(vss_kernels.PatchError, match="it is compiled by TorchScript"):
        vss_kernels.patch(head)
