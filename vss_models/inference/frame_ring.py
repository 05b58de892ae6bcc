"""What is kept of the latest frames of a video, at fixed addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class FrameRing:
    """Places for the states of frames, which a later frame takes over.

    A place is named by a number in a tensor, so that one recording of a step serves all frames.
    Tensors are stored with their dimensions in the order they have in memory.

    Args:
        state: A state such as will be kept: tensors (N, ...), in tuples or alone.
        places: Number of places.

    Attributes:
        buffers: For each tensor of a state those of all places, (N, places, ...).
    """

    def __init__(self, state: Any, places: int) -> None:
        tensors, self._layout = pytree.tree_flatten(state)
        self._orders = [_memory_order(tensor) for tensor in tensors]
        self.buffers: list[Tensor] = []
        for tensor, order in zip(tensors, self._orders, strict=True):
            batch, *rest = tensor.permute(order).shape
            # Not in inference mode, whose tensors a compiler could not change later. Zeros, since
            # an unused place may be read, if only to warm up.
            with torch.inference_mode(False):
                self.buffers.append(tensor.new_zeros(batch, places, *rest))

    def read(self, buffers: list[Tensor], places: Tensor) -> Any:
        """Copies what lies at places (R,) int64: a state of tensors (N, R, ...)."""
        found = []
        for buffer, order in zip(buffers, self._orders, strict=True):
            stored = buffer.index_select(1, places)
            positions = [0, 1, *(order.index(axis) + 1 for axis in range(1, len(order)))]
            found.append(stored.permute(positions))
        return pytree.tree_unflatten(found, self._layout)

    def write(self, buffers: list[Tensor], place: Tensor, state: Any) -> None:
        """Puts a state at a place (1,) int64."""
        tensors = pytree.tree_leaves(state)
        for buffer, order, tensor in zip(buffers, self._orders, tensors, strict=True):
            buffer.index_copy_(1, place, tensor.permute(order).unsqueeze(1))


def _memory_order(tensor: Tensor) -> list[int]:
    """The dimensions from the widest stride to the narrowest, the first one always first."""
    strides = tensor.stride()
    rest = sorted(range(1, tensor.dim()), key=lambda axis: (-strides[axis], axis))
    return [0, *rest]


__all__ = ["FrameRing"]
