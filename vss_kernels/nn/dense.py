"""The upsampling operators as modules, and SegFormer's fusion of feature levels by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vss_kernels.fuse_pyramid import fuse_pyramid
from vss_kernels.nn import linear
from vss_kernels.upsample_argmax import upsample_argmax
from vss_kernels.upsample_cross_entropy import upsample_cross_entropy


class UpsampleCrossEntropy(nn.Module):
    """:func:`vss_kernels.upsample_cross_entropy` with the interface of ``nn.CrossEntropyLoss``.

    Args:
        weight: Weight of each class, shape (K,), or None; a buffer of the module.
        ignore_index: Label of the pixels that count as zero and get no gradient.
        reduction: ``"mean"``, ``"mean_all"``, ``"sum"`` or ``"none"``.
        label_smoothing: Fraction of the target probability spread over all classes, in [0, 1].
        align_corners: Whether the centres of the corner pixels coincide in the resize.

    Example:
        >>> criterion = vss_kernels.nn.UpsampleCrossEntropy(ignore_index=255)
        >>> logits = torch.randn(2, 19, 16, 16, requires_grad=True)
        >>> loss = criterion(logits, torch.randint(19, (2, 64, 64)))
        >>> loss.shape
        torch.Size([])
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.align_corners = align_corners

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of logits (N, K, h, w) for classes (N, H, W)."""
        return upsample_cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
        )


class UpsampleArgmax(nn.Module):
    """:func:`vss_kernels.upsample_argmax` as a module.

    Args:
        size: Height and width of the result.
        through: Height and width to resize to first, or None.
        align_corners: Whether the centres of the corner pixels coincide in every resize.

    Example:
        >>> to_classes = vss_kernels.nn.UpsampleArgmax((64, 64))
        >>> to_classes(torch.randn(1, 19, 16, 16)).shape
        torch.Size([1, 64, 64])
    """

    def __init__(
        self,
        size: tuple[int, int],
        through: tuple[int, int] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.through = through
        self.align_corners = align_corners

    def forward(self, logits: Tensor) -> Tensor:
        """Returns the classes (N, H, W) of logits (N, K, h, w)."""
        return upsample_argmax(logits, self.size, self.through, align_corners=self.align_corners)


class FusePyramid(nn.Module):
    """SegFormer's fusion of feature levels: linear, resize, concatenate, 1x1 convolution.

    A linear map and a bilinear resize commute, so each level is projected at its own size with the
    product of its two matrices, and the results are added by :func:`vss_kernels.fuse_pyramid`: the
    same map without the concatenation at the size of the first level (Xie et al., NeurIPS 2021).

    Args:
        channels: Channels of the levels, the largest level first.
        embed_dim: Channels E of the fused map.
        align_corners: Whether the centres of the corner pixels coincide in the resizes.

    Example:
        >>> fusion = vss_kernels.nn.FusePyramid((32, 64), 16)
        >>> fusion([torch.randn(1, 32, 8, 8), torch.randn(1, 64, 4, 4)]).shape
        torch.Size([1, 16, 8, 8])
    """

    def __init__(
        self, channels: Sequence[int], embed_dim: int, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.level_projections = nn.ModuleList(nn.Linear(c, embed_dim) for c in channels)
        self.mix = nn.Conv2d(len(channels) * embed_dim, embed_dim, 1, bias=False)
        self.align_corners = align_corners

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuses the levels (N, C_i, h_i, w_i), the largest first, into (N, E, h_1, w_1).

        As SegFormer does, the convolution takes the smallest level's channels first.
        """
        mixers = self.mix.weight.flatten(1).chunk(len(self.level_projections), 1)
        linears = [cast(nn.Linear, linear) for linear in self.level_projections]
        weights, bias = fused_weights(linears, mixers[::-1])
        return fuse_projected(levels, weights, bias, self.align_corners)


def fused_weights(
    linears: Sequence[nn.Linear], mixers: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Multiplies the two matrices that each level passes.

    Args:
        linears: For each level its projection from C_i to D channels.
        mixers: For each level its columns of the 1x1 convolution, (E, D).

    Returns:
        The products (E, C_i) and the bias (E,) of their sum, in the parameters' dtype also under
        autocast.
    """
    with torch.autocast(mixers[0].device.type, enabled=False):
        pairs = list(zip(linears, mixers, strict=True))
        weights = [mixer @ linear.weight for linear, mixer in pairs]
        biases = [mixer @ linear.bias for linear, mixer in pairs if linear.bias is not None]
        bias = torch.stack(biases).sum(0) if biases else mixers[0].new_zeros(len(mixers[0]))
    return weights, bias


def fuse_projected(
    levels: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, align_corners: bool = False
) -> Tensor:
    """Projects each level at its own size, resizes the results to the first and adds them.

    Args:
        levels: Feature levels (N, C_i, h_i, w_i), the largest first.
        weights: For each level its matrix (E, C_i).
        bias: Added once to the sum, (E,).
        align_corners: Whether the centres of the corner pixels coincide in the resizes.

    Returns:
        Map of shape (N, E, h_1, w_1).
    """
    # A resize leaves constants as they are, so one level can carry the bias of all.
    biases = [None] * (len(weights) - 1) + [bias]
    projected = [project(*level) for level in zip(levels, weights, biases, strict=True)]
    return fuse_pyramid(projected, align_corners=align_corners)


def project(level: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies the channels of a map (N, C, h, w) by a matrix (E, C)."""
    tokens = level.permute(0, 2, 3, 1)
    if tokens.stride(3) == 1 and linear.convolves(tokens, weight, bias):
        return linear.token_linear(tokens, weight, bias).permute(0, 3, 1, 2)
    # A product for each image gives (N, E, h, w) whichever way the features are stored.
    matrices, columns = weight.expand(len(level), -1, -1), level.flatten(2)
    if bias is None:
        rows = torch.bmm(matrices, columns)
    else:
        rows = torch.baddbmm(bias[:, None], matrices, columns)
    return rows.unflatten(2, level.shape[2:])
