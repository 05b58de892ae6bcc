"""Registers operators whose kernels are launched from Python, at little cost to each call.

``torch.library.custom_op`` does the same with more layers around every call, forward and backward;
on a GPU that is launched from Python they cost more than the launches. What is here leaves out what
these operators have no use for: keyword arguments, lists of differentiable tensors, several kernels
for one operator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vss_kernels._runtime import native

_NAMESPACE = "vss_kernels"
_library = torch.library.Library(_NAMESPACE, "FRAGMENT")  # operators live as long as it does
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset


class PythonOperator:
    """An operator of the namespace ``vss_kernels`` that a Python function computes.

    Args:
        name: Name without the namespace.
        kernel: Takes tensors and plain values by position and returns new tensors; its annotations
            make the schema. Compilers do not look into it.
    """

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.name = name
        self.parameters = tuple(inspect.signature(kernel).parameters)
        schema = torch.library.infer_schema(kernel, mutates_args=())
        _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        hidden = torch.compiler.disable(kernel)
        _library.impl(name, hidden, "CompositeExplicitAutograd")
        self.overload = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def __call__(self, *arguments: Any) -> Any:
        """Calls the registered operator."""
        return self.overload(*arguments)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Registers what returns results without values; a decorator."""
        return torch.library.register_fake(f"{_NAMESPACE}::{self.name}", fake, lib=_library)

    def differentiate_by(self, backward: PythonOperator, results: Sequence[str] = ()) -> None:
        """Registers a gradient that is one call of another operator, ``<name>_backward``.

        The extension takes that call over where it is there: by way of Python's autograd it would
        cost several times as much.

        Args:
            backward: Takes, by the names of its arguments, ``grad``, the gradient of the first
                result (the others have none); arguments of this operator; results of it; and
                ``needs``, which says of each of the first arguments whether its gradient is wanted.
                Returns the gradients of the first arguments, and may leave out those that are not.
            results: Names of this operator's results; needed only if ``backward`` takes one.

        Raises:
            ValueError: ``backward`` takes something else.
        """
        sources: list[tuple[str, int]] = []
        for name in backward.parameters:
            if name in ("grad", "needs"):
                sources.append((name, 0))
            elif name in results:
                sources.append(("result", results.index(name)))
            elif name in self.parameters:
                sources.append(("input", self.parameters.index(name)))
            else:
                raise ValueError(
                    f"{backward.name}: {name} is neither an argument of {self.name} nor a result"
                )
        extension = native.extension()
        if extension is not None:
            extension.differentiate(self.name, sources)
            return
        self.register_autograd(*_as_function(backward, sources))
        backward.forbid_derivative(self.name)

    def register_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[..., None]
    ) -> None:
        """Registers the gradient, as ``torch.library.register_autograd`` does.

        Args:
            backward: Takes a context and the results' gradients; returns one gradient, or None, for
                each argument.
            setup_context: Takes the context, the arguments and the results, and saves what
                ``backward`` needs.
        """
        overload = self.overload

        class Gradient(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> Any:
                *inputs, keys = arguments  # the keys come last, so that positions are the inputs'
                with torch._C._AutoDispatchBelowAutograd():
                    output = overload.redispatch(keys & _BELOW_AUTOGRAD, *inputs)
                setup_context(ctx, tuple(inputs), output)
                return output

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                if torch.is_grad_enabled():  # so that a second derivative is refused
                    return *backward(ctx, *grads), None
                with torch._C._AutoDispatchBelowAutograd():
                    return *backward(ctx, *grads), None

        def call(keys: Any, *arguments: Any) -> Any:
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
                return Gradient.apply(*arguments, keys)  # type: ignore[no-untyped-call]
            with torch._C._AutoDispatchBelowAutograd():
                return overload.redispatch(keys & _BELOW_AUTOGRAD, *arguments)

        _library.impl(self.name, call, "Autograd", with_keyset=True)

    def forbid_derivative(self, forward_name: str) -> None:
        """Makes differentiating this operator, which computes a gradient, an error.

        Without this, PyTorch would quietly treat the kernel's result as a constant.

        Args:
            forward_name: Public name of the operator that this is the gradient of.
        """

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(
                f"vss_kernels.{forward_name}: the fused kernel has no second derivative; compute "
                f'it with vss_kernels.backend("eager", "{forward_name}")'
            )

        self.register_autograd(refuse, lambda ctx, inputs, output: None)


def _as_function(
    operator: PythonOperator, sources: Sequence[tuple[str, int]]
) -> tuple[Callable[..., Any], Callable[..., None]]:
    """The two functions of :meth:`PythonOperator.register_autograd` for a backward operator."""
    count = len(operator.overload._schema.returns)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        values = [
            {"input": inputs, "result": results}[source][position]
            for source, position in sources
            if source in ("input", "result")
        ]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.plain = [None if isinstance(value, torch.Tensor) else (value,) for value in values]
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)  # without the keys
        if grad is None:
            return nothing
        needs = list(ctx.needs_input_grad[:count])
        tensors = iter(ctx.saved_tensors)
        values = iter([next(tensors) if value is None else value[0] for value in ctx.plain])
        given = {"grad": grad, "needs": needs}
        grads = operator(
            *(given[source] if source in given else next(values) for source, _ in sources)
        )
        wanted = [found if needed else None for found, needed in zip(grads, needs, strict=True)]
        return *wanted, *nothing[count:]

    return backward, setup_context


def python_operator(name: str) -> Callable[[Callable[..., Any]], PythonOperator]:
    """Registers the function that it decorates as ``vss_kernels::name``."""
    return lambda kernel: PythonOperator(name, kernel)
