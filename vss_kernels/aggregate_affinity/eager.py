"""Refinement and aggregation of affinity maps over three scales in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vss_kernels.aggregate_affinity.weights import NORM_EPSILON, AggregationWeights, ConvNormLayer


def _refine(maps: Tensor, layers: Sequence[ConvNormLayer]) -> Tensor:
    for layer in layers:
        weight, bias, scale, shift = (tensor.to(maps.dtype) for tensor in layer)
        maps = F.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2)
        # F.group_norm refuses a single map of one position, which a tiny image has.
        maps = torch.group_norm(maps, 1, scale, shift, NORM_EPSILON)
        maps = F.relu(maps)
    return maps  # (M, Cout, height, width)


def _upsample(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=True)


def aggregate_affinity(
    coarse: Tensor, middle: Tensor, fine: Tensor, weights: AggregationWeights
) -> Tensor:
    """Refines each scale by itself, then adds them from coarse to fine, mixing after each sum."""
    refined = _refine(coarse.unsqueeze(1), weights.coarse)  # (M, c, h, w)
    for scale, layers, mixer in (
        (middle, weights.middle, weights.coarse_to_middle),  # (M, c, 2h, 2w)
        (fine, weights.fine, weights.middle_to_fine),  # (M, c, 4h, 4w)
    ):
        detail = _refine(scale.unsqueeze(1), layers)
        refined = _refine(_upsample(refined, detail) + detail, mixer)
    return refined.squeeze(1)  # (M, 4h, 4w)
