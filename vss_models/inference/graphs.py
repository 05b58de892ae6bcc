"""Functions that are compiled, and replayed as CUDA graphs, for a bounded number of sizes.

A CUDA graph launches all kernels of a function at once, without Python in between. It is recorded
for one set of sizes and reads and writes fixed addresses. The first calls of a size run as they
are: they compile, choose algorithms and build tables, whose memory thus lies outside the graph's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

logger = logging.getLogger("vss_models")

MOST_SIZES = 8
"""Sizes that are compiled and captured; as many as torch.compile accepts by default."""

CALLS_BEFORE_CAPTURE = 2
"""Calls of a size that run before it is captured: compilation, then a run of what it made."""

Result: TypeAlias = Any
"""Tensors in tuples, lists and dictionaries, or one tensor."""


class Recording(NamedTuple):
    """A captured call.

    Attributes:
        replay: Does the work again, on what the arguments hold by then.
        result: What the call returned, overwritten by each replay.
    """

    replay: Callable[[], None]
    result: Result


Capture: TypeAlias = Callable[[Callable[[], Result]], Recording]
"""Turns a call without arguments into a recording."""


class CudaCapture:
    """Records calls as CUDA graphs that share one pool of memory.

    What one graph leaves in the pool may be overwritten by the next, so only the latest result may
    be looked at.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Callable[[], Result]) -> Recording:
        """Captures a call; what it computes is not there before the first replay."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins batches, may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = call()
        return Recording(graph.replay, result)


@dataclass
class _Size:
    """What is known of one set of sizes."""

    calls: int = 0
    inputs: tuple[Tensor, ...] = ()
    recording: Recording | None = None


class SizedFunction:
    """Calls a fast form of a function for the first few sizes of its arguments, then the plain one.

    Args:
        fast: Tensors to tensors; compiled for each new size, for example.
        plain: The same function for all further sizes.
        capture: How to record calls of `fast`; None does not record them. If it fails, the reason
            is logged once and calls are not recorded any more.
        name: What messages call the function.
        most_sizes: Number of sizes that `fast` is called with.
        inputs_stay: Whether the tensors of each size are at the same addresses in every call. If
            not, they are copied to fixed ones before a replay.
        falls_back: Whether `plain` takes the place of `fast`, with a logged reason, if the first
            call of a size fails. A machine may lack what a compiler needs.
    """

    def __init__(
        self,
        fast: Callable[..., Result],
        plain: Callable[..., Result],
        capture: Capture | None = None,
        name: str = "the model",
        most_sizes: int = MOST_SIZES,
        inputs_stay: bool = False,
        falls_back: bool = False,
    ) -> None:
        self.fast = fast
        self.plain = plain
        self.capture = capture
        self.name = name
        self.most_sizes = most_sizes
        self.inputs_stay = inputs_stay
        self.falls_back = falls_back
        self._sizes: dict[Hashable, _Size] = {}
        self._has_warned = False

    def __call__(self, *inputs: Tensor, variant: Hashable = None) -> Result:
        """Calls the function.

        Args:
            *inputs: Its tensors.
            variant: What else the call depends on; calls of different variants are recorded apart.

        Returns:
            Its result. That of a recorded call is overwritten by the next call.
        """
        signature = (variant, *((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))
        size = self._sizes.get(signature)
        if size is None:
            if len(self._sizes) >= self.most_sizes:
                self._warn_of_sizes(inputs)
                return self.plain(*inputs)
            size = self._sizes[signature] = _Size()
        size.calls += 1
        if self.capture is not None and size.calls > CALLS_BEFORE_CAPTURE:
            if size.recording is None:
                self._record(size, inputs)
            if size.recording is not None:
                for static, tensor in zip(size.inputs, inputs, strict=True):
                    if static is not tensor:
                        static.copy_(tensor, non_blocking=True)
                size.recording.replay()
                return size.recording.result
        if size.calls == 1 and self.falls_back:
            return self._try(inputs)
        return self.fast(*inputs)

    def _try(self, inputs: Sequence[Tensor]) -> Result:
        """Calls the fast form, for good the plain one if that fails."""
        try:
            return self.fast(*inputs)
        except Exception as error:  # compilers raise what they like
            # If it was no fault of the compiler, the plain form raises it again.
            result = self.plain(*inputs)
            self.falls_back = False
            self.fast = self.plain
            cause = getattr(error, "inner_exception", error)  # a compiler's wraps what it met
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            logger.warning("%s is not compiled, because that failed: %s", self.name, reason)
            return result

    def _record(self, size: _Size, inputs: Sequence[Tensor]) -> None:
        assert self.capture is not None
        size.inputs = tuple(t if self.inputs_stay else t.clone() for t in inputs)
        try:
            size.recording = self.capture(lambda: self.fast(*size.inputs))
        except RuntimeError as error:
            logger.warning(
                "%s is not replayed as a CUDA graph, because capturing it failed: %s",
                self.name,
                error,
            )
            self.capture = None

    def _warn_of_sizes(self, inputs: Sequence[Tensor]) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s has met more than %d sizes; from now on new ones, such as %s, run uncompiled "
                "and slower",
                self.name,
                self.most_sizes,
                [tuple(tensor.shape) for tensor in inputs],
            )


__all__ = ["CudaCapture", "Recording", "SizedFunction"]
