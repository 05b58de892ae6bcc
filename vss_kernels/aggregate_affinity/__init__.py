"""aggregate_affinity: refine affinity maps at three scales and merge them into the finest."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs, is_autocast
from vss_kernels._runtime.checks import (
    SUPPORTED_DTYPES,
    check_same_kind,
    check_shape,
    check_tensor,
    describe,
)
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
    _check_channels(weights)
    coarse, middle, fine = cast_inputs(coarse, middle, fine)
    check_same_kind(_NAME, coarse=coarse, middle=middle, fine=fine)
    _check_kinds(coarse, weights)
    return operator(coarse, middle, fine, weights)


def _check_kinds(coarse: Tensor, weights: AggregationWeights) -> None:
    # Under autocast the parameters are not cast: there are dozens, and each is tiny.
    dtype = weights.coarse[0].weight.dtype if is_autocast(coarse) else coarse.dtype
    device = coarse.device
    if dtype in SUPPORTED_DTYPES and all(
        tensor.dtype == dtype and tensor.device == device
        for chain in weights
        for layer in chain
        for tensor in layer
    ):
        return
    like = coarse.new_empty((), dtype=dtype)
    check_same_kind(_NAME, coarse=like, **_named(weights))


def _check_channels(weights: AggregationWeights) -> None:
    refined = [
        _check_chain(name, getattr(weights, name), 1) for name in ("coarse", "middle", "fine")
    ]
    mixed = _check_chain("coarse_to_middle", weights.coarse_to_middle, refined[0])
    final = _check_chain("middle_to_fine", weights.middle_to_fine, mixed)
    for name, have, want in (
        ("middle", refined[1], refined[0]),
        ("fine", refined[2], mixed),
        ("middle_to_fine", final, 1),
    ):
        if have != want:
            raise ValueError(
                f"{_NAME}: the last layer of weights.{name} must give {want} channel(s), got {have}"
            )


def _check_chain(name: str, chain: tuple[ConvNormLayer, ...], channels: int) -> int:
    """Checks that the layers fit each other and the incoming channels; returns the outgoing."""
    if len(chain) == 0:
        raise ValueError(f"{_NAME}: weights.{name} must hold at least one layer, got none")
    for position, layer in enumerate(chain):
        if isinstance(layer, ConvNormLayer) and _fits(layer, channels):
            channels = layer.bias.shape[0]
            continue
        label = f"weights.{name}[{position}]"
        if not isinstance(layer, ConvNormLayer):
            raise TypeError(f"{_NAME}: {label} must be a ConvNormLayer, got {describe(layer)}")
        check_tensor(_NAME, f"{label}.weight", layer.weight, "Cout,Cin,k,k")
        outgoing, _, kernel, _ = layer.weight.shape
        if kernel % 2 == 0:
            raise ValueError(f"{_NAME}: {label}.weight must have an odd kernel, got {kernel}")
        check_shape(_NAME, f"{label}.weight", layer.weight, (None, channels, kernel, kernel))
        for part in ("bias", "norm_weight", "norm_bias"):
            vector = getattr(layer, part)
            check_tensor(_NAME, f"{label}.{part}", vector, "Cout")
            check_shape(_NAME, f"{label}.{part}", vector, (outgoing,))
        channels = outgoing
    return channels


def _fits(layer: ConvNormLayer, channels: int) -> bool:
    """Whether a layer is right in every respect that :func:`_check_chain` names one by one."""
    weight, *vectors = layer
    if not all(isinstance(tensor, Tensor) for tensor in layer) or weight.dim() != 4:
        return False
    outgoing, incoming, kernel, other = weight.shape
    return (
        incoming == channels
        and kernel == other
        and kernel % 2 == 1
        and all(vector.shape == (outgoing,) for vector in vectors)
    )


def _named(weights: AggregationWeights) -> dict[str, Tensor]:
    return {
        f"weights.{name}[{position}].{part}": tensor
        for name, chain in weights._asdict().items()
        for position, layer in enumerate(chain)
        for part, tensor in layer._asdict().items()
    }
