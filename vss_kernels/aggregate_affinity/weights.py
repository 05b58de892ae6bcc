"""The parameters of the affinity refinement, as the operator takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NORM_EPSILON = 1e-5


class ConvNormLayer(NamedTuple):
    """One convolution, GroupNorm (one group) and ReLU.

    Attributes:
        weight: Convolution weight (Cout, Cin, k, k), k odd; zero padding is k // 2.
        bias: Convolution bias (Cout,).
        norm_weight: GroupNorm scale (Cout,).
        norm_bias: GroupNorm shift (Cout,).

    Example:
        >>> conv, norm = torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2)
        >>> layer = vss_kernels.ConvNormLayer(conv.weight, conv.bias, norm.weight, norm.bias)
        >>> layer.weight.shape
        torch.Size([2, 1, 3, 3])
    """

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


class AggregationWeights(NamedTuple):
    """The layers of :func:`vss_kernels.aggregate_affinity`, each a chain of one or more.

    Attributes:
        coarse: Refinement of the 1/32 maps; its first layer takes one channel.
        middle: Refinement of the 1/16 maps; its first layer takes one channel.
        fine: Refinement of the 1/8 maps; its first layer takes one channel.
        coarse_to_middle: Mixer after the coarse and middle maps were added.
        middle_to_fine: Mixer after the fine maps were added; its last layer gives one channel.

    Example:
        >>> layer = vss_kernels.ConvNormLayer(
        ...     torch.randn(1, 1, 3, 3), torch.zeros(1), torch.ones(1), torch.zeros(1)
        ... )
        >>> weights = vss_kernels.AggregationWeights(
        ...     coarse=(layer,),
        ...     middle=(layer,),
        ...     fine=(layer, layer),
        ...     coarse_to_middle=(layer,),
        ...     middle_to_fine=(layer,),
        ... )
        >>> [len(chain) for chain in weights]
        [1, 1, 2, 1, 1]
    """

    coarse: tuple[ConvNormLayer, ...]
    middle: tuple[ConvNormLayer, ...]
    fine: tuple[ConvNormLayer, ...]
    coarse_to_middle: tuple[ConvNormLayer, ...]
    middle_to_fine: tuple[ConvNormLayer, ...]
