"""What a CUDA graph does with a call, without a GPU: fixed inputs, fixed results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vss_models.inference.graphs import Recording


class RecordedCalls:
    """Records calls as CUDA graphs are recorded: a replay writes to the first call's results.

    Attributes:
        recorded: Number of calls recorded.
        replayed: Number of replays.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, call: Callable[[], Any]) -> Recording:
        """Records a call. A graph does nothing before its first replay, which is done here."""
        self.recorded += 1
        result = call()
        is_first = True
        with_gradients = torch.is_grad_enabled()  # a graph repeats what was recorded

        def replay() -> None:
            nonlocal is_first
            self.replayed += 1
            if is_first:
                is_first = False
                return
            with torch.no_grad():
                _overwrite(result, call, with_gradients)

        return Recording(replay, result)


def _overwrite(result: Any, call: Callable[[], Any], with_gradients: bool) -> None:
    with torch.set_grad_enabled(with_gradients):
        later = call()
    for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(later), strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)


class FailingCapture:
    """Refuses every call, as CUDA does where a call waits for the GPU."""

    def __call__(self, call: Callable[[], Any]) -> Recording:
        """Raises."""
        raise RuntimeError("operation not permitted when stream is capturing")
