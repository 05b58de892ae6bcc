"""The Mix Transformer: published sizes, strides, initialisation, drop path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vss_kernels._runtime import native
from vss_models import create_model
from vss_models.backbones import MixTransformer
from vss_models.backbones.mit import MixFeedForward
from vss_models.backbones.patches import reduce_patches

PARAMETERS = {"b0": 3.32, "b1": 13.15, "b2": 24.20, "b3": 44.07, "b4": 60.84, "b5": 81.44}
SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 2, 1, 2)}


@pytest.mark.parametrize(("size", "millions"), PARAMETERS.items())
def test_parameters_are_the_published_ones(size: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = create_model(f"segformer_{size}", num_classes=2).backbone
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 67)])
def test_levels_halve_and_round_up(height: int, width: int) -> None:
    encoder = MixTransformer(**SMALL).eval()
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, height, width))
    strides = (4, 8, 16, 32)
    assert [tuple(f.shape) for f in features] == [
        (2, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(SMALL["dims"], strides, strict=True)
    ]


def test_norms_have_the_two_published_eps() -> None:
    encoder = MixTransformer(**SMALL)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm):
            after_conv = "embedding" in name or "reduction" in name
            assert module.eps == (1e-5 if after_conv else 1e-6), name


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    encoder = MixTransformer(**SMALL, drop_path=0.1)
    rates = (1 - encoder.kept).view(6, 2)
    assert torch.equal(rates[:, 0], rates[:, 1])
    assert rates[:, 0].tolist() == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1], abs=1e-6)
    with pytest.raises(ValueError, match=r"drop_path must lie in \[0, 1\), got 1"):
        encoder.set_drop_path(1)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    encoder = MixTransformer(**SMALL, drop_path=0.25).train()
    drawn = encoder._draw_factors(20000)
    assert drawn is not None
    first, *_, last = drawn
    assert first.shape == last.shape == (20000,)
    assert (first == 1).all()
    assert last.unique().tolist() == pytest.approx([0.0, 4 / 3])
    # Standard error of the mean: sqrt(0.25 / 0.75 / 20000) = 0.004.
    assert last.mean().item() == pytest.approx(1.0, abs=0.02)
    assert encoder.eval()._draw_factors(2) is None


def test_a_dropped_branch_leaves_its_sample_as_it_was() -> None:
    encoder = MixTransformer(**SMALL)
    block = encoder.stages[0].blocks[0]
    nn.init.normal_(block.attention.projection.bias)
    x = torch.randn(2, 8, 16, 8)
    kept = torch.tensor([1.0, 0.0])
    after, (tokens, factor) = block(x, None, (kept, kept))
    assert torch.equal(after[1], x[1])
    assert not torch.equal(after[0], x[0])
    assert tokens.shape == x.shape
    assert factor is kept


@pytest.mark.parametrize(("side", "height", "width"), [(2, 6, 8), (4, 9, 14), (8, 8, 23)])
def test_reduction_is_the_convolution(side: int, height: int, width: int) -> None:
    conv = nn.Conv2d(6, 5, side, stride=side).double()
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    expected = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(reduce_patches(conv, x), expected)


@pytest.mark.parametrize(("side", "height", "width"), [(2, 4, 6), (3, 7, 8)])
def test_gradients_of_the_reduction(side: int, height: int, width: int) -> None:
    conv = nn.Conv2d(2, 3, side, stride=side).double()
    x = torch.randn(2, height, width, 2, dtype=torch.float64, requires_grad=True)
    wanted = [x, *conv.parameters()]
    expected = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    cotangent = torch.randn_like(expected)
    for have, want in zip(
        torch.autograd.grad(reduce_patches(conv, x), wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(have, want)
    conv.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda maps: reduce_patches(conv, maps), x)


def test_a_reduction_keeps_the_map_alone() -> None:
    """Other layers keep it as well; a copy in patches would be as large once more."""
    conv, saved = nn.Conv2d(6, 5, 2, stride=2), []
    x = torch.randn(2, 8, 12, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        reduce_patches(conv, x)
    sizes = {tensor.data_ptr(): tensor.numel() for tensor in saved}
    assert sorted(sizes.values()) == sorted([x.numel(), conv.weight.numel()])
    assert x.data_ptr() in sizes


@pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
def test_the_feed_forward_network_keeps_one_hidden_map() -> None:
    """What the convolution reads; all that follows up to the second linear layer is made again."""
    network = MixFeedForward(6, 20)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        network(torch.randn(2, 5, 7, 6))
    elements = [math.prod(size) for size in sizes]
    assert elements.count(2 * 5 * 7 * 20) == 1, sizes


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    encoder = MixTransformer((64, 128, 320, 512), (1, 1, 1, 1))
    block = encoder.stages[3].blocks[0]
    # A normal of 0.02 is cut at two *units*, so it keeps its deviation.
    assert block.attention.query.weight.std().item() == pytest.approx(0.02, rel=0.01)
    convolution = encoder.stages[1].embedding.projection
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    depthwise = block.mlp.depthwise
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": (8, 16, 40), "depths": (1, 1, 1, 1)}, "dims needs one number per level"),
        ({"dims": (8, 16, 41, 64), "depths": (1, 1, 1, 1)}, "multiples of num_heads"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixTransformer(**settings)
