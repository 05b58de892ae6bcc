"""Residual addition and LayerNorm, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Adds the branch and normalises the sum over its last dimension."""
    total = x
    if branch is not None:
        if factor is not None:
            branch = branch * factor.to(branch.dtype).view(-1, *(1,) * (branch.dim() - 1))
        total = (x + branch).to(x.dtype).contiguous()
    rows = total.to(torch.promote_types(total.dtype, weight.dtype))
    wide_weight, wide_bias = weight.to(rows.dtype), bias.to(rows.dtype)
    return total, F.layer_norm(rows, (x.shape[-1],), wide_weight, wide_bias, eps).to(dtype)
