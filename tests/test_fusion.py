"""The fusion by projected levels against its definition by concatenation."""

from __future__ import annotations

import pytest
import torch

from vss_kernels.nn.dense import fuse_projected
from vss_models.heads.fusion import PyramidFusion

CHANNELS = (8, 12, 20, 24)
SIZES = ((20, 26), (10, 13), (5, 7), (3, 4))


def trained_fusion() -> PyramidFusion:
    """Returns a fusion whose norm has statistics: folding it in changes every number."""
    torch.manual_seed(2)
    fusion = PyramidFusion(CHANNELS, 16).double()
    with torch.no_grad():
        for tensor in (fusion.norm.weight, fusion.norm.bias, fusion.norm.running_mean):
            assert tensor is not None
            tensor.normal_()
        assert fusion.norm.running_var is not None
        fusion.norm.running_var.uniform_(0.1, 3)
    return fusion


def features() -> list[torch.Tensor]:
    return [
        torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
        for channels, size in zip(CHANNELS, SIZES, strict=True)
    ]


@pytest.mark.parametrize("training", [False, True])
def test_projected_is_the_definition(training: bool) -> None:
    fusion = trained_fusion().train(training)
    levels = features()
    results = []
    for mode in ("projected", "concatenate"):
        fusion.mode = mode
        fused = fusion(levels)
        wanted = [*levels, *fusion.parameters()]
        weights = torch.linspace(-1, 1, fused.numel(), dtype=torch.float64).view_as(fused)
        results.append([fused, *torch.autograd.grad((fused * weights).sum(), wanted)])
    for have, want in zip(*results, strict=True):
        # A bias in front of a batch norm has no effect in training: its gradient is rounding.
        assert (have - want).abs().max() <= 1e-11 * max(want.abs().max(), 1)


def test_folded_norm_is_the_norm() -> None:
    """Half of the positions are cut off by the ReLU, so it sits behind the folded norm."""
    fusion = trained_fusion().eval()
    levels = features()
    mixed = fuse_projected(levels, *fusion.level_weights(fold_norm=False))
    expected = torch.relu(fusion.norm(mixed))
    fused = fusion(levels)
    assert (fused - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert 0.1 < (fused == 0).double().mean() < 0.9
