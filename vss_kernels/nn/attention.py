"""Attention with few keys, as in encoders that reduce the map their keys come from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vss_kernels._runtime import cpu_inference, native
from vss_kernels._runtime.autocast import cast_inputs

__all__ = ["attend_few_keys"]


def attend_few_keys(query: Tensor, key_value: Tensor) -> Tensor:
    """Scaled dot-product attention on tokens whose heads are stored side by side.

    In inference on a CPU a native kernel reads queries, keys and values where a linear layer has
    written them (SegFormer's efficient self-attention: Xie et al., NeurIPS 2021, section 3.1); in
    bfloat16 it multiplies by the CPU's matrix units where there are some. Otherwise it is
    ``F.scaled_dot_product_attention``.

    Args:
        query: (N, Q, heads, D) of a floating-point dtype; the native kernel takes float32, float16
            and bfloat16, and sums up in float32.
        key_value: Keys and values, (N, K, 2, heads, D), dtype of ``query``. Under
            ``torch.autocast`` both are cast to its dtype.

    Returns:
        Tensor of shape (N, Q, heads, D), dtype of ``query`` after the cast.

    Example:
        >>> query, key_value = torch.randn(2, 64, 4, 8), torch.randn(2, 16, 2, 4, 8)
        >>> vss_kernels.nn.attend_few_keys(query, key_value).shape
        torch.Size([2, 64, 4, 8])
    """
    query, key_value = cast_inputs(query, key_value)
    if _is_native(query, key_value):
        return torch.ops.vss_kernels.reduced_attention_cpu(query, key_value)
    key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query.transpose(1, 2), key, value).transpose(1, 2)


def _is_native(query: Tensor, key_value: Tensor) -> bool:
    return (
        cpu_inference.is_cpu_inference(query, key_value)
        and native.problem() is None
        and query.dtype == key_value.dtype
        and native.refuses(query) is None
        and key_value.shape[1] > 0
    )


def _fake(query: Tensor, key_value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


if native.problem() is None:
    torch.library.register_fake("vss_kernels::reduced_attention_cpu", _fake)
