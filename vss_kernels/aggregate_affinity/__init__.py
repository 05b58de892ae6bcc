"""aggregate_affinity: refine affinity maps at three scales and merge them into the finest."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels._runtime.checks import check_same_kind, check_shape, check_tensor, describe
from vss_kernels.aggregate_affinity.layers import check_kinds, checked_layers
from vss_kernels.aggregate_affinity.op import operator
from vss_kernels.aggregate_affinity.weights import NORM_EPSILON, AggregationWeights, ConvNormLayer

__all__ = ["NORM_EPSILON", "AggregationWeights", "ConvNormLayer", "aggregate_affinity"]

_NAME = "aggregate_affinity"


def aggregate_affinity(
    coarse: Tensor, middle: Tensor, fine: Tensor, weights: AggregationWeights
) -> Tensor:
    """Refines each kept token's affinity maps and aggregates them over three scales.

    Every layer is a convolution (zero padding), a GroupNorm with one group (eps 1e-5) and a ReLU.
    Each scale passes its own layers; the coarse result is upsampled (bilinear,
    ``align_corners=True``), the middle one added and the sum mixed by further layers; the same
    again up to the fine scale. These are the Single-scale Affinity Refinement and Multi-scale
    Affinity Aggregation of MRCFA (Sun et al., ECCV 2022).

    Args:
        coarse: M maps at 1/32 of the image, shape (M, h, w), float32, float16, bfloat16 or float64,
            any strides.
        middle: The same tokens' maps at 1/16, shape (M, 2h, 2w), same dtype as ``coarse``.
        fine: The same tokens' maps at 1/8, shape (M, 4h, 4w), same dtype as ``coarse``.
        weights: The layers, same dtype as ``coarse`` (under autocast they keep their own). The
            three refinements take one channel and end in equally many; the last mixer ends in one.

    Returns:
        Tensor of shape (M, 4h, 4w), contiguous, dtype of ``coarse``. Statistics and sums are
        computed in float32 (float64 for float64).

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, the channels of ``weights`` do not chain, a kernel is
            even or not square, or the devices differ.

    Example:
        >>> layer = vss_kernels.ConvNormLayer(
        ...     torch.randn(1, 1, 3, 3), torch.zeros(1), torch.ones(1), torch.zeros(1)
        ... )
        >>> weights = vss_kernels.AggregationWeights(*[(layer,)] * 5)  # five chains of one layer
        >>> maps = [torch.randn(6, 4 * scale, 5 * scale) for scale in (1, 2, 4)]
        >>> vss_kernels.aggregate_affinity(*maps, weights).shape
        torch.Size([6, 16, 20])
    """
    for name, maps in (("coarse", coarse), ("middle", middle), ("fine", fine)):
        check_tensor(_NAME, name, maps, "M,height,width")
    maps_count, height, width = coarse.shape
    if height == 0 or width == 0:
        raise ValueError(
            f"{_NAME}: coarse must have at least one row and one column, got {tuple(coarse.shape)}"
        )
    check_shape(_NAME, "middle", middle, (maps_count, 2 * height, 2 * width))
    check_shape(_NAME, "fine", fine, (maps_count, 4 * height, 4 * width))
    if not isinstance(weights, AggregationWeights):
        raise TypeError(f"{_NAME}: weights must be AggregationWeights, got {describe(weights)}")
    parameters, sizes = checked_layers(weights)
    coarse, middle, fine = cast_inputs(coarse, middle, fine)
    check_same_kind(_NAME, coarse=coarse, middle=middle, fine=fine)
    check_kinds(coarse, weights, parameters)
    return operator(coarse, middle, fine, weights, parameters, sizes)
