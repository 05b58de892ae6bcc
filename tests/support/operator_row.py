"""How to call an operator, and what it returns: a row of the table in tests.support.contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager


def _assert_as_accurate_as_eager(row: Row, arguments: Sequence[Any], backend: str) -> None:
    """The accuracy rule for a floating result and its gradients."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    others = arguments[len(tensors) :]

    def run(*values: Any) -> Tensor:
        out = row.call(*values, *others)
        return torch.stack(out) if isinstance(out, tuple) else out

    assert_as_accurate_as_eager(
        run,
        tensors,
        row.operator,
        backend,
        positive=True,  # or the gradient of a bias, one long sum, would all but cancel
    )


@dataclass(frozen=True)
class Row:
    """How to call one operator.

    Attributes:
        operator: Public name.
        call: Calls the operator on what ``make`` returns. Other values than tensors are sizes
            that follow the tensors'; what is fixed belongs into ``call``.
        make: Makes float32 arguments of a size on the CPU.
        size: A size for ``make``; its first number is the batch's, which zero makes empty.
        other_size: A second size, where all that may vary without compilation anew differs. In the
            first, no two of these sizes are equal, nor is one: a compiler would rely on that.
        large_size: A size that keeps several threads busy.
        cast_by_autocast: How many of the leading tensors autocast casts; None for other rules.
        smallest_size: A size for opcheck, which makes dozens of calls; None for ``size``.
        has_gradient: Whether the result is differentiable, by all floating tensors.
        native_on_gpu: Whether the native backend takes tensors on a GPU, too.
        compiles_fused: Whether torch.compile keeps a fused kernel, not the eager definition.
        eager_compiler: The backend of torch.compile for the eager definition; ``"eager"`` captures
            its graph alone, for one whose lowering with symbolic sizes takes a minute.
        assert_accurate: Takes the row, arguments and a backend; asserts that the backend's results
            are as accurate as eager's.
    """

    operator: str
    call: Callable[..., Any]
    make: Callable[..., Sequence[Any]]
    size: tuple[Any, ...]
    other_size: tuple[Any, ...]
    large_size: tuple[Any, ...]
    cast_by_autocast: int | None
    smallest_size: tuple[Any, ...] | None = None
    has_gradient: bool = True
    native_on_gpu: bool = True
    compiles_fused: bool = True
    eager_compiler: str = "aot_eager"
    assert_accurate: Callable[[Row, Sequence[Any], str], None] = _assert_as_accurate_as_eager

    def arguments(
        self, size: Sequence[Any], device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Any]:
        """Arguments of ``call``: on a device, and floating tensors in a dtype."""

        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return [place(value) for value in self.make(*size)]

    def leaves(self, arguments: Sequence[Any]) -> list[Tensor]:
        """Lets the floating tensors require a gradient where there is one, and returns them."""
        if not self.has_gradient:
            return []
        return [value.requires_grad_() for value in arguments if is_floating(value)]

    def run(
        self, backend: str, arguments: Sequence[Any], create_graph: bool = False
    ) -> list[Tensor]:
        """Returns the results of a backend, then the gradients of all leaves."""
        with vss_kernels.backend(backend, self.operator):
            return results_and_gradients(self.call, arguments, create_graph)


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def results_and_gradients(
    call: Callable[..., Any], arguments: Sequence[Any], create_graph: bool = False
) -> list[Tensor]:
    """Returns the results of a call, then the gradients of all leaves among its arguments.

    The cotangent is the result itself, so that it depends on every argument.
    """
    leaves = [value for value in arguments if is_floating(value) and value.requires_grad]
    out = call(*arguments)
    results = list(out) if isinstance(out, tuple) else [out]
    objective = sum(result.square().sum() for result in results if leaves)
    gradients = torch.autograd.grad(objective, leaves, create_graph=create_graph) if leaves else ()
    return [*(result.detach() for result in results), *gradients]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "vss_kernels":
            assert not kwargs
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@contextmanager
def registered_calls() -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """Records the calls of this package's registered operators, with their arguments."""
    with _Recorder() as recorder:
        yield recorder.calls
