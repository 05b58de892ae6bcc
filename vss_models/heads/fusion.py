"""All-MLP fusion of the four feature levels into one map at 1/4 of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vss_kernels._runtime import cpu_inference
from vss_kernels.nn import halved_fusion
from vss_kernels.nn.dense import fuse_projected, fused_weights
from vss_kernels.nn.resizing import resize

FUSION_MODES = ("projected", "concatenate")


class PyramidFusion(nn.Module):
    """Fuses four levels: linear to `embed_dim`, resize, concatenate, 1x1 convolution, norm, ReLU.

    A linear map and a bilinear resize commute, so the mode "projected" multiplies the two matrices
    of each level first, projects the level at its own size, and sums the resized results: the same
    map without the wide concatenation at 1/4. "concatenate" follows the definition step by step and
    is there to compare against. Both use the same parameters (SegFormer, section 3.2). "projected"
    also multiplies the norm into the matrices in evaluation, where it does not follow the batch.

    Args:
        channels: Channels of the levels at 1/4, 1/8, 1/16 and 1/32.
        embed_dim: Channels E of the fused map.
        mode: "projected" or "concatenate".

    Attributes:
        prepared: What the mode "projected" computes from the weights alone in evaluation: the
            matrix (E, C_i) of each level and the bias (E,). None computes it in every call.

    Raises:
        ValueError: If the mode is neither.
    """

    keeps_precision = True  # the matrices are multiplied with each other before autocast's cast

    def __init__(self, channels: Sequence[int], embed_dim: int, mode: str = "projected") -> None:
        super().__init__()
        if mode not in FUSION_MODES:
            raise ValueError(f"fusion must be one of {FUSION_MODES}, got {mode!r}")
        self.mode = mode
        self.level_projections = nn.ModuleList(nn.Linear(c, embed_dim) for c in channels)
        self.mix = nn.Conv2d(len(channels) * embed_dim, embed_dim, 1, bias=False)
        # The one weight of a head that does not start from PyTorch's default in the published
        # programs, apart from the bias tables and poolings of focal blocks.
        nn.init.kaiming_normal_(self.mix.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(embed_dim, eps=1e-5)
        self.prepared: list[Tensor] | None = None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuses the levels (N, C_i, H_i, W_i), largest first, into (N, E, H_1, W_1)."""
        if self.mode == "concatenate":
            return F.relu(self.norm(self._concatenate(features)))
        if self.norm.training:
            weights, bias = self.level_weights(fold_norm=False)
            return F.relu(self.norm(fuse_projected(features, weights, bias)))
        weights, bias = self._evaluation_weights()
        # In place, as nothing else refers to the sum: at 1/4 a second map costs more than the ReLU.
        return F.relu(fuse_projected(features, weights, bias), inplace=True)

    def halved(self, features: Sequence[Tensor]) -> Tensor | None:
        """Fuses the levels into (N, E, H_1 / 2, W_1 / 2), bilinearly resized, without the map.

        Returns:
            What resizing the map of :meth:`forward` gives, but for rounding; None where there is no
            faster way to it than that (:func:`vss_kernels.nn.halved_fusion.halves_natively`).
        """
        if self.mode == "concatenate" or self.norm.training:
            return None
        # Asked before weights are multiplied, so that exported programs do it once.
        if not cpu_inference.is_cpu_inference(*features):
            return None
        weights, bias = self._evaluation_weights()
        return halved_fusion.fuse_halved_natively(features, weights, bias)

    def _evaluation_weights(self) -> tuple[list[Tensor], Tensor]:
        if self.prepared is None:
            return self.level_weights(fold_norm=True)
        *weights, bias = self.prepared
        return weights, bias

    def level_weights(self, fold_norm: bool) -> tuple[list[Tensor], Tensor]:
        """Multiplies the mixing matrix with the matrix of each level.

        Args:
            fold_norm: Whether to multiply the norm in, as it is in evaluation.

        Returns:
            The products (E, C_i) and the bias (E,), in the parameters' dtype also under autocast.
        """
        # The concatenation starts with the smallest level.
        mixers = list(reversed(self.mix.weight.flatten(1).chunk(len(self.level_projections), 1)))
        linears = [cast(nn.Linear, linear) for linear in self.level_projections]
        weights, bias = fused_weights(linears, mixers)
        with torch.autocast(self.mix.weight.device.type, enabled=False):
            if fold_norm:
                norm = self.norm
                mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
                scale = norm.weight * (variance + norm.eps).rsqrt()
                weights = [scale[:, None] * weight for weight in weights]
                bias = (bias - mean) * scale + norm.bias
        return weights, bias

    def _concatenate(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        embedded = []
        for feature, linear in zip(features, self.level_projections, strict=True):
            level = linear(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            embedded.append(resize(level, size))
        return self.mix(torch.cat(embedded[::-1], dim=1))


__all__ = ["FUSION_MODES", "PyramidFusion"]
