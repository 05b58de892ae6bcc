"""How much memory a program holds at its peak, counted by tracing: nothing is computed.

Used within :func:`tests.support.kernel_count.traced`, whose tensors are fake. What a kernel sets
aside for itself is not seen, and gradients that meet are never added in place, as they may be in
fact.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

GRAIN = 512
"""Bytes of which PyTorch's allocator for GPUs hands out multiples."""


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of tensors that were made while it is active, for as long as they live.

    Attributes:
        living: Bytes now.
        peak: The most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.living = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), -(-storage.nbytes() // GRAIN) * GRAIN
        if key in self._storages:
            return  # a view, or its own input

        def release(_: Any) -> None:
            del self._storages[key]
            self.living -= size

        self._storages[key] = weakref.ref(storage, release)
        self.living += size
        self.peak = max(self.peak, self.living)
