"""1x1 classifiers as batched matrix products, with the dropout of channels in the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vss_kernels.nn import token_linear
from vss_models.narrowing import narrowed


def draw_channels(dropout: nn.Dropout2d, like: Tensor, *shape: int) -> Tensor | None:
    """Draws what a dropout of whole channels multiplies them by, for all maps at once.

    Args:
        dropout: The dropout.
        like: A tensor whose dtype and device the result has.
        *shape: The shape of the result, channels last.

    Returns:
        Zeros and 1 / (1 - p), or None where nothing is dropped.
    """
    if not dropout.training or dropout.p == 0:
        return None
    kept = 1 - dropout.p
    drawn = like.new_empty(shape).bernoulli_(kept)
    return drawn.div_(kept) if kept > 0 else drawn


class Classifier(nn.Conv2d):
    """A 1x1 convolution to classes, as a matrix product for each map.

    A channel that is dropped may as well be dropped from the weights, which are few, instead of the
    maps, which are large: no map is copied, and none is kept for the gradient.

    Args:
        channels: Channels E of the maps.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes, 1)

    def forward(self, maps: Tensor, dropout: nn.Dropout2d | None = None) -> Tensor:
        """Turns maps (N, E, h, w) into logits (N, K, h, w).

        Args:
            maps: The maps, any strides.
            dropout: Which channels of a map to drop before.
        """
        return self.classify(maps.flatten(2), dropout).unflatten(2, maps.shape[2:])

    def classify(self, rows: Tensor, dropout: nn.Dropout2d | None = None) -> Tensor:
        """Turns positions (N, E, P), any strides, into logits (N, K, P); see :meth:`forward`."""
        weight, (count, channels) = narrowed(self.weight.flatten(1)), rows.shape[:2]
        factors = None if dropout is None else draw_channels(dropout, weight, count, 1, channels)
        weights = weight.expand(count, -1, -1) if factors is None else weight * factors
        return torch.baddbmm(_bias(self)[:, None], weights, rows)

    def classify_pixels(self, maps: Tensor) -> Tensor:
        """Turns maps (N, E, h, w), any strides, into logits (N, h, w, K), without dropout."""
        weight, bias = narrowed(self.weight.flatten(1)), narrowed(_bias(self))
        return token_linear(maps.permute(0, 2, 3, 1), weight, bias)


def classify_each(classifiers: Sequence[Classifier], maps: Tensor, dropout: nn.Dropout2d) -> Tensor:
    """Classifies maps, each with a classifier of its own.

    Args:
        classifiers: R classifiers of E channels.
        maps: (B, R, E, P), any strides.
        dropout: Which channels of a map to drop before.

    Returns:
        Logits (B, R, K, P).
    """
    batch, _, channels = maps.shape[:3]
    weights = narrowed(torch.stack([entry.weight.flatten(1) for entry in classifiers]))
    biases = narrowed(torch.stack([_bias(entry) for entry in classifiers]))
    factors = draw_channels(dropout, weights, batch, len(classifiers), 1, channels)
    matrices = weights.expand(batch, -1, -1, -1) if factors is None else weights * factors
    start = biases[..., None].expand(batch, -1, -1, -1)
    logits = torch.baddbmm(start.flatten(0, 1), matrices.flatten(0, 1), maps.flatten(0, 1))
    return logits.unflatten(0, (batch, -1))


def _bias(classifier: Classifier) -> Tensor:
    assert classifier.bias is not None
    return classifier.bias


__all__ = ["Classifier", "classify_each", "draw_channels"]
