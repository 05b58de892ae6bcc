"""add_layer_norm: a residual connection and the LayerNorm behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.autocast import is_autocast
from vss_kernels._runtime.checks import (
    SUPPORTED_DTYPES,
    check_same_kind,
    check_shape,
    check_tensor,
    describe,
)
from vss_kernels.add_layer_norm.op import operator

__all__ = ["add_layer_norm"]

_NAME = "add_layer_norm"


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None = None,
    factor: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds a residual branch to ``x`` and normalises the sum over the channels.

    This is what stands between two parts of a pre-norm transformer block (LayerNorm: Ba et al.,
    2016; a factor of 0 or 1 / (1 - rate) per sample: stochastic depth, Huang et al., 2016). The sum
    keeps the dtype of ``x``, so that a residual stream in float32 stays one under autocast, while
    the normalised result has the dtype that the next matrix product wants.

    Args:
        x: Tensor of shape (N, ..., C), float32, float16, bfloat16 or float64, any strides.
        weight: Scale of each channel, shape (C,).
        bias: Shift of each channel, shape (C,), dtype of ``weight``.
        branch: What is added, of the shape of ``x``; ``None`` adds nothing.
        factor: What each sample's branch is multiplied by, shape (N,); has no gradient.
        eps: Added to the variance.
        dtype: Of the normalised result; by default the autocast dtype under ``torch.autocast``,
            else that of ``x``.

    Returns:
        ``x + factor * branch`` in the dtype of ``x`` (``x`` itself if there is no branch), and its
        normalisation. Statistics are computed in float32 (float64 for float64).

    Raises:
        TypeError: An argument is no tensor, or a dtype is unsupported.
        ValueError: A shape does not fit, or the devices differ.

    Example:
        >>> x, branch = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
        >>> total, normed = vss_kernels.add_layer_norm(x, torch.ones(8), torch.zeros(8), branch)
        >>> torch.equal(total, x + branch)
        True
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{_NAME}: x must be a tensor (N,...,C), got {describe(x)}")
    if x.dim() < 2:
        raise ValueError(f"{_NAME}: x must have at least 2 dimensions (N,...,C), got {describe(x)}")
    channels = x.shape[-1]
    for name, vector in (("weight", weight), ("bias", bias)):
        check_tensor(_NAME, name, vector, "C")
        check_shape(_NAME, name, vector, (channels,))
    check_same_kind(_NAME, weight=weight, bias=bias)
    if branch is not None:
        if not isinstance(branch, Tensor):
            raise TypeError(f"{_NAME}: branch must be a tensor or None, got {describe(branch)}")
        check_shape(_NAME, "branch", branch, tuple(x.shape))
    if factor is not None:
        check_tensor(_NAME, "factor", factor, "N")
        check_shape(_NAME, "factor", factor, (x.shape[0],))
        if branch is None:
            raise ValueError(f"{_NAME}: factor multiplies a branch, and branch is None")
    for name, other in (("weight", weight), ("branch", branch), ("factor", factor)):
        if other is not None and other.device != x.device:
            raise ValueError(
                f"{_NAME}: {name} is on {other.device} but x is on {x.device}; move them to one "
                "device"
            )
    if dtype is None:
        dtype = x.dtype
        if is_autocast(x) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
    kinds = {"x": x.dtype, "dtype": dtype} | ({} if branch is None else {"branch": branch.dtype})
    for name, kind in kinds.items():
        if kind not in SUPPORTED_DTYPES:
            raise TypeError(f"{_NAME}: {name} must be floating point, got {kind}")
    return operator(x, weight, bias, branch, factor, eps, dtype)
