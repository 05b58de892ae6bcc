"""aggregate_affinity as a registered operator: packing, fake, autograd, the backends' conditions.

The schemas stand in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels. They
take all parameters as one packed vector, whose gradient autograd hands back to the single tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.autograd import forbid_second_derivative
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.aggregate_affinity import eager
from vss_kernels.aggregate_affinity.weights import AggregationWeights

_KERNELS = (1, 3, 5, 7)
_MAX_CHANNELS = 4
_MAX_LAYERS = 24


def _native_can_run(
    coarse: Tensor, middle: Tensor, fine: Tensor, weights: AggregationWeights
) -> str | None:
    layers = 0
    for chain in weights:
        layers += len(chain)
        for layer in chain:
            outgoing, incoming, kernel, _ = layer.weight.shape
            if kernel not in _KERNELS:
                return f"it convolves with kernels of 1, 3, 5 or 7, not of {kernel}"
            if outgoing > _MAX_CHANNELS or incoming > _MAX_CHANNELS:
                return (
                    f"it takes layers of up to {_MAX_CHANNELS} channels, "
                    f"not from {incoming} to {outgoing}"
                )
    if layers > _MAX_LAYERS:
        return f"it takes up to {_MAX_LAYERS} layers, not {layers}"
    return native.refuses(coarse) or native.refuses(weights.coarse[0].weight)


def _run_native(
    coarse: Tensor, middle: Tensor, fine: Tensor, weights: AggregationWeights
) -> Tensor:
    layers = [len(chain) for chain in weights]
    tensors: list[Tensor] = []
    for chain in weights:
        for weight, *vectors in chain:
            outgoing, incoming, kernel, _ = weight.shape
            layers += (kernel, incoming, outgoing)
            tensors += (weight.reshape(-1), *vectors)
    return torch.ops.vss_kernels.aggregate_affinity(
        coarse, middle, fine, torch.cat(tensors), layers
    )[0]


def _fake(
    coarse: Tensor, middle: Tensor, fine: Tensor, parameters: Tensor, layers: list[int]
) -> tuple[Tensor, Tensor]:
    statistics = fine.new_empty((fine.shape[0], sum(layers[:5]), 2), dtype=torch.float32)
    return fine.new_empty(fine.shape), statistics


def _fake_backward(
    grad: Tensor,
    coarse: Tensor,
    middle: Tensor,
    fine: Tensor,
    parameters: Tensor,
    statistics: Tensor,
    layers: list[int],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    maps = (
        scale.new_empty(scale.shape if needed else (0, 0, 0))
        for scale, needed in zip((coarse, middle, fine), needs, strict=False)
    )
    return (*maps, parameters.new_empty(parameters.shape))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.layers = inputs
    _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(*tensors, statistics)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    grads = torch.ops.vss_kernels.aggregate_affinity_backward(
        grad, *ctx.saved_tensors, ctx.layers, needs
    )
    return (*(g if needed else None for g, needed in zip(grads, needs, strict=True)), None)


if native.problem() is None:
    torch.library.register_fake("vss_kernels::aggregate_affinity", _fake)
    torch.library.register_fake("vss_kernels::aggregate_affinity_backward", _fake_backward)
    torch.library.register_autograd(
        "vss_kernels::aggregate_affinity", _backward, setup_context=_setup_context
    )
    forbid_second_derivative("aggregate_affinity")

operator = Operator(
    "aggregate_affinity",
    [
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.aggregate_affinity), always, always),
    ],
)
