"""The rule for a kernel's accuracy: no worse than twice the eager operator in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import vss_kernels

# What rounding alone may cost where eager happens to be exact, relative to the largest value.
SLACK = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def outputs_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], positive: bool = False
) -> tuple[Tensor, ...]:
    """Returns the result of ``function`` and the gradients of all floating inputs.

    The gradients are those of the result's scalar product with a fixed random cotangent, the same
    whatever dtype or device the inputs have; ``positive`` draws it from [0, 1).
    """
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    out = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand if positive else torch.randn
    cotangent = draw(out.shape, generator=generator, dtype=torch.float64)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad(out, wanted, cotangent.to(out), allow_unused=True)
    return out.detach(), *(
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(wanted, grads, strict=True)
    )


def error(value: Tensor, exact: Tensor) -> float:
    """Returns the largest difference from ``exact``, relative to its largest magnitude."""
    assert value.shape == exact.shape, (value.shape, exact.shape)
    if exact.numel() == 0:
        return 0.0
    assert value.isfinite().all(), "not every element was written, or the kernel overflowed"
    scale = exact.abs().max().clamp(min=1e-30)
    return float((value.double().cpu() - exact).abs().max() / scale)


def assert_as_accurate_as_eager(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    operator: str,
    backend: str,
    positive: bool = False,
    exact_device: str = "cpu",
) -> None:
    """Asserts err(kernel, fp64) <= 2 * err(eager, fp64) + slack, for the result and gradients.

    Args:
        function: Calls the operator on its tensor arguments.
        inputs: The tensor arguments, in the dtype and on the device to test.
        operator: Public name of the operator.
        backend: The backend to test.
        positive: Draw a positive cotangent. With positive inputs no sum then cancels, and an error
            relative to the result measures the kernel even where only a few terms are summed.
        exact_device: Where eager computes the float64 reference; large inputs need a GPU for it.
    """
    exact_inputs = [
        t.to(exact_device, torch.float64 if t.is_floating_point() else t.dtype) for t in inputs
    ]
    with vss_kernels.backend("eager", operator):
        exact = [t.cpu() for t in outputs_and_gradients(function, exact_inputs, positive)]
        eager = outputs_and_gradients(function, inputs, positive)
    with vss_kernels.backend(backend, operator):
        fused = outputs_and_gradients(function, inputs, positive)
    for index, (want, plain, have) in enumerate(zip(exact, eager, fused, strict=True)):
        name = "result" if index == 0 else f"gradient {index - 1}"
        allowed = 2 * error(plain, want) + SLACK[inputs[0].dtype]
        assert have.dtype == plain.dtype, f"{name}: {have.dtype} instead of {plain.dtype}"
        assert have.is_contiguous() or index > 0, f"{name} is not contiguous"
        assert error(have, want) <= allowed, f"{name}: error {error(have, want)} > {allowed}"
