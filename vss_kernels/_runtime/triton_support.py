"""Common to the Triton operators: whether they can run here, how they round, where they launch.

Triton is imported by the first kernel that runs, not with the package. Under
``TRITON_INTERPRET=1``, set before Python starts, its kernels run on CPU tensors, slowly; that is
for tests.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

CHANNEL_MULTIPLE = 8
"""Tokens that are multiplied must have a multiple of this many channels."""

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

_INSTALLED = importlib.util.find_spec("triton") is not None
_NO_DEVICE = nullcontext()
_has_device: bool | None = None


def problem() -> str | None:
    """Returns ``None`` when Triton kernels can run on this machine, else why they cannot."""
    if not _INSTALLED:
        return (
            "Triton is not installed; it comes with PyTorch's CUDA builds for Linux, "
            "or by pip install triton"
        )
    if INTERPRETED or torch.compiler.is_compiling():
        return None  # a traced tensor's device says whether there is one: see refuses()
    global _has_device
    if _has_device is None:
        _has_device = torch.cuda.is_available()
    return None if _has_device else "there is no CUDA device for Triton kernels"


def refuses(tensor: Tensor) -> str | None:
    """Why no Triton kernel can take ``tensor``'s device and dtype, or ``None``."""
    kind = tensor.device.type
    if kind == "cpu" and not INTERPRETED:
        return "its kernels run on cuda tensors (on cpu ones only under TRITON_INTERPRET=1)"
    if kind not in ("cpu", "cuda"):
        return f"its kernels run on cuda tensors, not on {kind}"
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, float16 and bfloat16, not in {tensor.dtype}"
    return None


def dot_precision() -> str:
    """How float32 matrix products may round: ``"tf32"`` where PyTorch's own may, else ``"ieee"``.

    Follows ``torch.backends.cuda.matmul`` and ``torch.set_float32_matmul_precision``.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def refuses_tokens(tokens: Tensor) -> str | None:
    """Why no Triton kernel can multiply these tokens (..., C), or ``None``."""
    reason = refuses(tokens)
    if reason is None and tokens.shape[-1] % CHANNEL_MULTIPLE != 0:
        reason = f"it takes channels in multiples of {CHANNEL_MULTIPLE}"
    return reason


def device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which kernels are launched on ``tensor``'s device."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else _NO_DEVICE


def cdiv(size: int, block: int) -> int:
    """Returns how many blocks cover ``size``."""
    return -(-size // block)
