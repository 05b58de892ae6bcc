"""1x1 classifiers as products: those of a convolution behind a dropout of channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vss_models.heads.classifier import Classifier, classify_each, draw_channels

OFF = nn.Dropout2d(0.0)


def shared_draw(monkeypatch: pytest.MonkeyPatch, factors: torch.Tensor) -> None:
    """Lets a classifier drop given channels, (N, E) or (B, R, E)."""
    monkeypatch.setattr(
        "vss_models.heads.classifier.draw_channels",
        lambda dropout, like, *shape: factors.unsqueeze(-2).expand(shape),
    )


@pytest.mark.parametrize("dropped", [False, True])
def test_is_a_convolution_behind_a_dropout(dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(6, 4).double()
    maps = torch.randn(3, 6, 5, 7, dtype=torch.float64).transpose(2, 3).requires_grad_()
    factors = (torch.rand(3, 6) < 0.5).double() / 0.5
    dropout = nn.Dropout2d(0.5)
    behind = maps
    if dropped:
        shared_draw(monkeypatch, factors)
        behind = maps * factors[..., None, None]
    expected = nn.functional.conv2d(behind, classifier.weight, classifier.bias)
    logits = classifier(maps, dropout if dropped else None)
    torch.testing.assert_close(logits, expected)
    leaves = [maps, *classifier.parameters()]
    cotangent = torch.randn_like(expected)
    for have, want in zip(
        torch.autograd.grad(logits, leaves, cotangent),
        torch.autograd.grad(expected, leaves, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("dropped", [False, True])
def test_each_map_has_its_classifier(dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    classifiers = [Classifier(6, 4).double() for _ in range(3)]
    maps = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    factors = torch.ones(2, 3, 6, dtype=torch.float64)
    if dropped:
        factors = (torch.rand(2, 3, 6) < 0.5).double() / 0.5
        shared_draw(monkeypatch, factors)
    logits = classify_each(classifiers, maps, nn.Dropout2d(0.5) if dropped else OFF)
    for number, classifier in enumerate(classifiers):
        expected = classifier.classify(maps[:, number] * factors[:, number, :, None])
        torch.testing.assert_close(logits[:, number], expected)


def test_draws_are_of_whole_channels_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    drawn = draw_channels(nn.Dropout2d(0.1), torch.zeros(()), 200, 1, 500)
    assert drawn is not None
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert drawn.mean().item() == pytest.approx(1.0, abs=5e-3)
    everything = draw_channels(nn.Dropout2d(1.0), torch.zeros(()), 3)
    assert everything is not None
    assert not everything.any()


def test_nothing_is_drawn_in_evaluation_or_without_dropout() -> None:
    assert draw_channels(nn.Dropout2d(0.5).eval(), torch.zeros(()), 3) is None
    assert draw_channels(OFF, torch.zeros(()), 3) is None
