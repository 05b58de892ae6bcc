"""Mix Transformer (MiT), the SegFormer encoder: four feature levels from overlapping patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vss_kernels._runtime import cpu_inference
from vss_kernels.nn import TokenLinear, add_norm, attend_few_keys, depthwise_gelu_linear
from vss_models.backbones.patches import reduce_patches
from vss_models.backbones.query_groups import attend_in_groups, num_groups
from vss_models.narrowing import narrowed

BLOCK_NORM_EPS = 1e-6
"""LayerNorm eps in the blocks and at the end of each stage."""

CONV_NORM_EPS = 1e-5
"""LayerNorm eps after the patch embedding and the key/value reduction convolutions."""


FEW_CHANNELS = 4
"""Incoming channels up to which a CPU embeds patches in the precision of the images."""


class Branch(NamedTuple):
    """A residual branch that is still to be added to the stream of tokens.

    Attributes:
        tokens: (N, H, W, C).
        factor: What each sample's branch is multiplied by, (N,); None multiplies by 1.
    """

    tokens: Tensor
    factor: Tensor | None


def add_and_norm(
    x: Tensor, branch: Branch | None, norm: nn.LayerNorm, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Adds a branch to the tokens (N, H, W, C); returns the sum and its LayerNorm.

    The norm has the dtype of matrix products, under autocast the narrow one, unless one is given.
    """
    tokens, factor = (None, None) if branch is None else branch
    return add_norm(x, norm.weight, norm.bias, tokens, factor, eps=norm.eps, dtype=dtype)


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and LayerNorm. (N, C, H, W) -> (N, h, w, C')."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2
        )
        self.norm = nn.LayerNorm(out_channels, eps=CONV_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds (N, C, H, W) as (N, ceil(H / stride), ceil(W / stride), C')."""
        # As wide as the weights: what the blocks add to.
        wide = self.norm.weight.dtype
        return add_and_norm(self._project(x).permute(0, 2, 3, 1), None, self.norm, wide)[1]

    def _project(self, x: Tensor) -> Tensor:
        convolution = self.projection
        if convolution.in_channels > FEW_CHANNELS or not cpu_inference.is_cpu_inference(
            x, convolution.weight
        ):
            projected: Tensor = convolution(x)
            return projected
        # Tokens lie side by side then, as the norm wants them. Three channels are too few for the
        # CPU's bfloat16 units: in float32 the same numbers take half of the time.
        tensors = narrowed(convolution.weight), narrowed(cast(Tensor, convolution.bias))
        weight, bias = (tensor.to(x.dtype) for tensor in tensors)
        pixels = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(pixels, weight, bias, convolution.stride, convolution.padding)


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced `reduction` times per side.

    Args:
        dim: Channels.
        num_heads: Heads; must divide `dim`.
        reduction: Kernel and stride of the reducing convolution; 1 leaves it out.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = TokenLinear(dim, dim)
        self.key_value = TokenLinear(dim, 2 * dim)
        self.projection = TokenLinear(dim, dim)
        self.reduction: nn.Conv2d | None = None
        self.reduction_norm: nn.LayerNorm | None = None
        if reduction > 1:
            self.reduction = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.reduction_norm = nn.LayerNorm(dim, eps=CONV_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Attends within each (H, W, C) map of the batch; returns (N, H, W, C)."""
        n, height, width, dim = x.shape
        context = x
        if self.reduction is not None and self.reduction_norm is not None:
            reduced = reduce_patches(self.reduction, x)
            _, context = add_and_norm(reduced, None, self.reduction_norm)
        head_shape = (self.num_heads, dim // self.num_heads)
        query = self.query(x).reshape(n, height * width, *head_shape)
        key_value = self.key_value(context).reshape(n, -1, 2, *head_shape)
        groups = 1
        if x.is_cuda and torch.is_grad_enabled() and key_value.requires_grad:
            groups = num_groups(n, self.num_heads, height * width, key_value.shape[1])
        if groups == 1:
            attended = attend_few_keys(query, key_value)
        else:
            attended = attend_in_groups(query, key_value, groups)
        return self.projection(attended.reshape(n, height, width, dim))


class MixFeedForward(nn.Module):
    """Linear, depthwise 3x3 convolution, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = TokenLinear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, H, W, C) to the same shape."""
        kernel, shift, contract = self.depthwise.weight, self.depthwise.bias, self.contract
        assert shift is not None
        return depthwise_gelu_linear(self.expand(x), kernel, shift, contract.weight, contract.bias)


class MixBlock(nn.Module):
    """Pre-norm transformer block of reduced attention and the convolutional feed-forward."""

    def __init__(self, dim: int, num_heads: int, reduction: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attention = ReducedAttention(dim, num_heads, reduction)
        self.mlp_norm = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mlp = MixFeedForward(dim, int(dim * mlp_ratio))

    def forward(
        self,
        x: Tensor,
        branch: Branch | None = None,
        factors: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, Branch]:
        """Runs the block, but for the last addition, which the next norm does on the way.

        Args:
            x: Tokens (N, H, W, C).
            branch: What the block before has left to be added to them.
            factors: What the block's own two branches are to be multiplied by, each (N,).

        Returns:
            Tokens (N, H, W, C), and what is still to be added to them.
        """
        x, normed = add_and_norm(x, branch, self.attention_norm)
        x, normed = add_and_norm(x, Branch(self.attention(normed), factors[0]), self.mlp_norm)
        return x, Branch(self.mlp(normed), factors[1])


class MixStage(nn.Module):
    """One feature level: patch embedding, blocks, final norm."""

    def __init__(self, embedding: PatchEmbedding, blocks: Sequence[MixBlock], dim: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)

    def forward(self, x: Tensor, factors: Iterator[Tensor] | None = None) -> Tensor:
        """Maps (N, C, H, W) to (N, C', h, w), stored with the channels last.

        Args:
            x: Images or the features of the level before.
            factors: What each branch is multiplied by, two for each block, each (N,).
        """
        x, branch = self.embedding(x), None
        for block in self.blocks:
            pair = (None, None) if factors is None else (next(factors), next(factors))
            x, branch = block(x, branch, pair)
        return add_and_norm(x, branch, self.norm)[1].permute(0, 3, 1, 2)


class MixTransformer(nn.Module):
    """The MiT encoder (SegFormer, NeurIPS 2021, section 3.1).

    Args:
        dims: Channels of the four levels.
        depths: Blocks in each level.
        num_heads: Attention heads in each level.
        reductions: Key/value reduction per side in each level.
        mlp_ratio: Hidden over input channels of the feed-forward.
        drop_path: Drop-path rate of the last block; it rises linearly from 0 at the first.

    Raises:
        ValueError: If a per-level setting has not four entries, or heads don't divide channels.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        per_level = {
            "dims": dims, "depths": depths, "num_heads": num_heads, "reductions": reductions
        }  # fmt: skip
        for name, values in per_level.items():
            if len(values) != 4:
                raise ValueError(f"{name} needs one number per level, four in all; got {values!r}")
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise ValueError(
                    f"dims must be multiples of num_heads level by level; got dims={tuple(dims)}, "
                    f"num_heads={tuple(num_heads)}"
                )
        self.channels = tuple(dims)
        self.kept: Tensor
        self.register_buffer("kept", torch.ones(2 * sum(depths)), persistent=False)
        self.set_drop_path(drop_path)
        stages = []
        for level, dim in enumerate(dims):
            previous = dims[level - 1] if level else 3
            kernel, stride = (3, 2) if level else (7, 4)
            blocks = [
                MixBlock(dim, num_heads[level], reductions[level], mlp_ratio)
                for _ in range(depths[level])
            ]
            stages.append(MixStage(PatchEmbedding(previous, dim, kernel, stride), blocks, dim))
        self.stages = nn.ModuleList(stages)
        self.apply(initialise)

    def set_drop_path(self, rate: float) -> None:
        """Sets the rate of the last block's branches; it rises linearly from 0 at the first.

        In training a sample's branch is left out with this probability, and scaled up so that its
        mean stays (stochastic depth).

        Args:
            rate: In [0, 1).

        Raises:
            ValueError: If it is not.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {rate}")
        self.drop_path = rate
        per_block = torch.linspace(1.0, 1.0 - rate, len(self.kept) // 2)
        self.kept.copy_(per_block.repeat_interleave(2))

    def _draw_factors(self, num_samples: int) -> Iterator[Tensor] | None:
        """Draws what all blocks' branches are multiplied by; None outside training."""
        if not self.training or self.drop_path == 0:
            return None
        kept = self.kept[:, None]
        uniform = torch.rand(len(kept), num_samples, device=kept.device, dtype=kept.dtype)
        return iter(((uniform < kept) / kept).unbind(0))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encodes images.

        Args:
            images: (N, 3, H, W), normalised.

        Returns:
            Four maps (N, C_i, H_i, W_i) at strides 4, 8, 16 and 32 (sides rounded up).
        """
        features = []
        x = images
        factors = self._draw_factors(len(images))
        for stage in self.stages:
            x = stage(x, factors)
            features.append(x)
        return features


def initialise(module: nn.Module) -> None:
    """Initialises one layer: truncated normal 0.02 for linears, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kernel_height, kernel_width = module.kernel_size
        fan_out = kernel_height * kernel_width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


__all__ = ["MixTransformer"]
