"""Autocast for operators that are called through Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_autocast(tensor: Tensor) -> bool:
    """Whether ``torch.autocast`` is enabled for the tensor's device."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def cast_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under ``torch.autocast``, casts floating tensors to the autocast dtype; else returns them.

    float64 stays float64, as in PyTorch's own autocast. Accumulation inside the operators is
    float32 whatever the dtype, so one lower-precision policy fits all of them.
    """
    if not is_autocast(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
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
        if not is_autocast(first):
            return function(first, *args)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args)

    return run
