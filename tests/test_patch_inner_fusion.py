"""patch: the all-MLP fusion inside a longer head, as in released MRCFA and CFFM."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vss_kernels
from tests.support.foreign_modules import CHANNELS, ClipHead, make_levels
from tests.support.memory import peak_memory
from vss_kernels.patch.deferred import Deferred, deferred
from vss_kernels.patch.inner_fusion import ConcatenatedLevels, UpsampledLevel
from vss_kernels.patch.kinds import kinds_of


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_answers_gradients_and_statistics_stay(training, align_corners):
    head = ClipHead(CHANNELS, 12, 7, align_corners).double().train(training)
    levels, cotangent = make_levels(), torch.randn(2, 14, 16, 24, dtype=torch.float64)
    used = [value for name, value in head.named_parameters() if "conv_seg" not in name]

    def run():
        torch.manual_seed(0)  # the same channels are dropped
        answer = head(levels)
        return answer, torch.autograd.grad(answer, [*levels, *used], cotangent)

    statistics = copy.deepcopy(head.state_dict())
    expected, gradients = run()
    moved = copy.deepcopy(head.state_dict())
    head.load_state_dict(statistics)
    report = vss_kernels.patch(head, ["fuse_pyramid"])
    assert [part.what for part in report.replaced] == [
        "all-MLP fusion inside a longer head, as in released MRCFA and CFFM"
    ]
    answer, patched_gradients = run()
    torch.testing.assert_close(answer, expected)
    assert not isinstance(answer, Deferred)
    for have, want in zip(patched_gradients, gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-12)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, moved[name], msg=name)
    assert vss_kernels.unpatch(head) == 1
    assert type(head) is ClipHead


def test_the_operator_is_what_computes_it():
    head = ClipHead(CHANNELS, 12, 7).double().eval()
    vss_kernels.patch(head, ["fuse_pyramid"])
    # The native backend refuses float64.
    refused = pytest.raises(vss_kernels.BackendError, match="fuse_pyramid")
    with vss_kernels.backend("native", "fuse_pyramid"), refused:
        head(make_levels())


def test_the_concatenation_is_no_longer_made():
    head = ClipHead(CHANNELS, 64, 7).eval()
    levels = [level.detach().float() for level in make_levels()]
    with torch.no_grad():
        before = peak_memory(lambda: head(levels))
        vss_kernels.patch(head, ["fuse_pyramid"])
        assert peak_memory(lambda: head(levels)) < 0.7 * before


def test_a_level_that_something_else_needs_is_computed():
    class Curious(ClipHead):
        def forward(self, inputs):
            answer = super().forward(inputs)
            return answer + self.seen.relu().sum() + self.fused.sum()

    head = Curious(CHANNELS, 12, 7).eval()

    def look(module, arguments):
        (head.seen,) = arguments
        head.fused = head.seen.mean(1)

    head.linear_fuse.register_forward_pre_hook(look)
    levels = make_levels(torch.float32)
    expected = head(levels)
    vss_kernels.patch(head, ["fuse_pyramid"])
    torch.testing.assert_close(head(levels), expected, rtol=1e-4, atol=1e-4)


def test_an_error_of_the_head_leaves_nothing_behind():
    head = ClipHead(CHANNELS, 12, 7)
    vss_kernels.patch(head, ["fuse_pyramid"])
    with pytest.raises(IndexError):
        head(make_levels(torch.float32)[:2])
    assert not head.linear_fuse.conv._forward_pre_hooks
    assert type(F.interpolate(torch.zeros(1, 12, 2, 2), (4, 4), mode="bilinear")) is torch.Tensor


@pytest.mark.parametrize("fuse", [nn.Conv2d(48, 12, 3), nn.Sequential(nn.Conv2d(47, 12, 1))])
def test_other_convolutions_are_refused(fuse):
    head = ClipHead(CHANNELS, 12, 7)
    head.linear_fuse = fuse
    with pytest.raises(vss_kernels.PatchError, match=r"plain 1x1|47 channels"):
        vss_kernels.patch(head, ["fuse_pyramid"])
    assert not kinds_of(head)


def join(*sizes, dim=1, to=(6, 8)):
    levels = [torch.randn(2, 3, *size, requires_grad=True) for size in sizes]
    resized = [deferred(UpsampledLevel, 3, level, to, mode="bilinear") for level in levels]
    plain = [F.interpolate(level, to, mode="bilinear") for level in levels]
    return levels, torch.cat(resized, dim), torch.cat(plain, dim)


@pytest.mark.parametrize("sizes", [[(6, 8), (3, 4)], [(2, 5), (3, 4)], [(9, 8), (6, 8)]])
def test_a_concatenation_is_right_whatever_becomes_of_it(sizes):
    """Where no level has the full size, or one a larger one, it is computed."""
    levels, joined, plain = join(*sizes)
    assert isinstance(joined, ConcatenatedLevels)
    assert joined.shape == plain.shape
    weight = torch.randn(5, 6, 1, 1)
    for function in (
        lambda x: F.conv2d(x, weight),
        lambda x: F.conv2d(x, weight, stride=2),
        lambda x: F.conv2d(x, torch.ones(2, 3, 1, 1), groups=2),
        lambda x: x[:, 1].exp(),
        lambda x: torch.nn.functional.linear(x.movedim(1, 3), weight[:, :, 0, 0]),
    ):
        have, want = function(joined), function(plain)
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)
        cotangent = torch.randn_like(want)
        gradients = (
            torch.autograd.grad(answer, levels, cotangent, retain_graph=True)
            for answer in (have, want)
        )
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_another_concatenation_is_computed():
    _, joined, plain = join((3, 4), (3, 4), dim=0)
    assert type(joined) is torch.Tensor
    torch.testing.assert_close(joined, plain)


def test_a_traced_head_is_the_original():
    head = ClipHead(CHANNELS, 12, 7).eval()
    levels = make_levels(torch.float32)
    expected = head(levels)
    vss_kernels.patch(head, ["fuse_pyramid"])
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(levels), expected, rtol=1e-4, atol=1e-5)
