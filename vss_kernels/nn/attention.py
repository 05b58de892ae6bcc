"""Attention with few keys, as in encoders that reduce the map their keys come from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vss_kernels._runtime import cpu_inference, native

__all__ = ["attend_few_keys"]


def attend_few_keys(query: Tensor, key_value: Tensor) -> Tensor:
    """Scaled dot-product attention on tokens whose heads are stored side by side.

    In inference in float32 on a CPU a native kernel reads queries, keys and values where a linear
    layer has written them (SegFormer's efficient self-attention: Xie et al., NeurIPS 2021,
    section 3.1). Otherwise it is ``F.scaled_dot_product_attention``.

    Args:
        query: (N, Q, heads, D).
        key_value: Keys and values, (N, K, 2, heads, D), dtype of ``query``.

    Returns:
        Tensor of shape (N, Q, heads, D).

    Example:
        >>> query, key_value = torch.randn(2, 64, 4, 8), torch.randn(2, 16, 2, 4, 8)
        >>> vss_kernels.nn.attend_few_keys(query, key_value).shape
        torch.Size([2, 64, 4, 8])
    """
    if _is_native(query, key_value):
        return torch.ops.vss_kernels.reduced_attention_cpu(query, key_value)
    key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query.transpose(1, 2), key, value).transpose(1, 2)


def _is_native(query: Tensor, key_value: Tensor) -> bool:
    return (
        cpu_inference.is_cpu_inference(query, key_value)
        and native.problem() is None
        and query.dtype == key_value.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and key_value.shape[1] > 0
    )


def _fake(query: Tensor, key_value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


if native.problem() is None:
    torch.library.register_fake("vss_kernels::reduced_attention_cpu", _fake)
