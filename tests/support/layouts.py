"""Tensors of the same values in other memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def stored_in_order(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Returns the same values and shape, with the dimensions laid out in memory in ``order``."""
    back = [list(order).index(axis) for axis in range(tensor.dim())]
    return tensor.detach().permute(list(order)).contiguous().permute(back)


def reversed_order(tensor: Tensor) -> Tensor:
    """Stores the first dimension innermost in memory."""
    return stored_in_order(tensor, range(tensor.dim())[::-1])


def channels_last(tensor: Tensor) -> Tensor:
    """Stores the second of three or more dimensions innermost in memory."""
    order = list(range(tensor.dim()))
    if len(order) > 2:
        order.append(order.pop(1))
    return stored_in_order(tensor, order)


def with_gaps(tensor: Tensor) -> Tensor:
    """Returns every second element of a larger tensor."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def expanded(tensor: Tensor) -> Tensor:
    """Repeats the first sample in place of all, with a stride of zero."""
    return tensor[:1].expand_as(tensor) if tensor.dim() > 1 else tensor


def change_tensors(function: Callable[[Tensor], Tensor], arguments: Sequence[Any]) -> list[Any]:
    """Applies a function to the tensors among some arguments."""
    return [function(value) if isinstance(value, Tensor) else value for value in arguments]
