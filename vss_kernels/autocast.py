"""Autocast for operators that are called through Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cast_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under ``torch.autocast``, casts floating tensors to the autocast dtype; else returns them.

    float64 stays float64, as in PyTorch's own autocast. Accumulation inside the operators is
    float32 whatever the dtype, so one lower-precision policy fits all of them.
    """
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        for tensor in tensors
    )


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes ``function`` compute in the dtypes it chooses itself, also under ``torch.autocast``.

    The device is that of the first argument. An eager definition needs this where it widens its
    inputs: autocast would narrow them again at the next matrix product.
    """

    @functools.wraps(function)
    def run(first: Tensor, *args: Any) -> Any:
        device = first.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(first, *args)
        with torch.autocast(device, enabled=False):
            return function(first, *args)

    return run
