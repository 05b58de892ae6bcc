"""Residual addition and LayerNorm as an encoder runs them: natively in inference on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime import cpu_inference, native
from vss_kernels._runtime.autocast import is_autocast
from vss_kernels.add_layer_norm import add_layer_norm

__all__ = ["add_norm"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None = None,
    factor: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Does what :func:`vss_kernels.add_layer_norm` does; arguments and results are the same.

    On a CPU that operator is PyTorch's addition and LayerNorm, which training uses. In inference
    one native kernel adds, rounds as they do, and normalises each row while it is in cache.

    Args:
        x: Tensor of shape (N, ..., C), any strides.
        weight: Scale of each channel, shape (C,).
        bias: Shift of each channel, shape (C,).
        branch: What is added, of the shape of ``x``; ``None`` adds nothing.
        factor: What each sample's branch is multiplied by, shape (N,).
        eps: Added to the variance.
        dtype: Of the normalised result; by default the autocast dtype under ``torch.autocast``,
            else that of ``x``.

    Returns:
        The sum in the dtype of ``x`` (``x`` itself if there is no branch), and its normalisation.

    Example:
        >>> x, branch = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
        >>> total, normed = vss_kernels.nn.add_norm(x, torch.ones(8), torch.zeros(8), branch)
        >>> total.shape, normed.shape
        (torch.Size([2, 6, 8]), torch.Size([2, 6, 8]))
    """
    if factor is not None or not _is_native(x, weight, bias, branch, dtype):
        return add_layer_norm(x, weight, bias, branch, factor, eps=eps, dtype=dtype)
    if dtype is None:
        dtype = torch.get_autocast_dtype("cpu") if is_autocast(x) else x.dtype
    total, out = torch.ops.vss_kernels.add_norm_cpu(x, weight, bias, branch, eps, dtype)
    return (x if branch is None else total), out


def _is_native(
    x: Tensor, weight: Tensor, bias: Tensor, branch: Tensor | None, dtype: torch.dtype | None
) -> bool:
    if native.problem() is not None or not cpu_inference.is_cpu_inference(x, weight, bias, branch):
        return False
    kinds = {x.dtype, *(kind for kind in (dtype,) if kind is not None)}
    if branch is not None:
        kinds.add(branch.dtype)
    # Whatever does not fit gets add_layer_norm's message.
    return (
        kinds <= set(_DTYPES)
        and weight.dtype == bias.dtype == torch.float32
        and x.dim() >= 2
        and x.shape[-1:] == weight.shape == bias.shape
        and x.shape[-1] > 0
        and (branch is None or branch.shape == x.shape)
    )


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    branch: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    total = x.new_empty((0,) if branch is None else x.shape)
    return total, x.new_empty(x.shape, dtype=dtype)


if native.problem() is None:
    torch.library.register_fake("vss_kernels::add_norm_cpu", _fake)
