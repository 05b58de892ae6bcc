"""Registers operators whose kernels are launched from Python, at little cost to each call.

``torch.library.custom_op`` does the same with more layers around every call, forward and backward;
on a GPU that is launched from Python they cost more than the launches. What is here leaves out what
these operators have no use for: keyword arguments, lists of differentiable tensors, several kernels
for one operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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


def python_operator(name: str) -> Callable[[Callable[..., Any]], PythonOperator]:
    """Registers the function that it decorates as ``vss_kernels::name``."""
    return lambda kernel: PythonOperator(name, kernel)
