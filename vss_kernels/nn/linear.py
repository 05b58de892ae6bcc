"""Linear layers over the channels of tokens, by the faster of a CPU's two libraries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vss_kernels._runtime import cpu_inference


class TokenLinear(nn.Linear):
    """``nn.Linear`` that runs inference on a CPU as a 1x1 convolution, in float32 and bfloat16.

    PyTorch multiplies float32 matrices by a BLAS, which on CPUs of some makers leaves half of the
    vector units idle, and convolutions by oneDNN, which does not: a convolution over the same
    numbers then takes less than half the time. In bfloat16 both are oneDNN's, but a linear layer
    first writes its bias to every row of the result and adds the product to it. Parameters, their
    names and what is computed are those of ``nn.Linear``; so is the way on a GPU, in other
    precisions, under a compiler, in float32 with a single thread (which PyTorch runs such
    convolutions on by the BLAS, too), in training and where ``vss_kernels.backend("eager")`` is
    forced.

    Example:
        >>> layer = vss_kernels.nn.TokenLinear(8, 16)
        >>> layer(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., C) to (..., C'), contiguous."""
        return token_linear(input, self.weight, self.bias)


def token_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` as :class:`TokenLinear` runs it.

    Args:
        x: Tokens (..., C).
        weight: Matrix (C', C).
        bias: Vector (C',), or None.

    Returns:
        Tokens (..., C').

    Example:
        >>> weight = torch.randn(16, 8)
        >>> vss_kernels.nn.token_linear(torch.randn(2, 5, 8), weight).shape
        torch.Size([2, 5, 16])
    """
    if not convolves(x, weight, bias):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C, tokens, 1)
    mapped = F.conv2d(pixels, weight[:, :, None, None], bias)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def convolves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Returns whether :func:`token_linear` runs a convolution for these tensors."""
    if (
        not cpu_inference.is_cpu_inference(x, weight, bias)
        or x.numel() == 0
        or not torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    dtypes = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu") and torch.float64 not in dtypes:
        dtypes = {torch.get_autocast_dtype("cpu")}
    if dtypes == {torch.bfloat16}:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtypes == {torch.float32} and torch.get_num_threads() > 1
