"""aggregate_affinity as a registered operator: fakes and the backends' conditions.

The schemas stand in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels and the
gradient (``csrc/aggregate_affinity/autograd.cpp``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.aggregate_affinity import eager
from vss_kernels.aggregate_affinity.layers import Sizes
from vss_kernels.aggregate_affinity.weights import AggregationWeights

_KERNELS = frozenset((1, 3, 5, 7))
_MAX_CHANNELS = 4
_MAX_LAYERS = 24


def _native_can_run(
    coarse: Tensor,
    middle: Tensor,
    fine: Tensor,
    weights: AggregationWeights,
    parameters: list[Tensor],
    sizes: Sizes,
) -> str | None:
    layers = sum(sizes[:5])
    if not _KERNELS.issuperset(sizes[5::3]) or max(*sizes[6::3], *sizes[7::3]) > _MAX_CHANNELS:
        return _refused_layer(sizes)
    if layers > _MAX_LAYERS:
        return f"it takes up to {_MAX_LAYERS} layers, not {layers}"
    return native.refuses(coarse) or native.refuses(parameters[0])


def _refused_layer(sizes: Sizes) -> str | None:
    for kernel, incoming, outgoing in zip(sizes[5::3], sizes[6::3], sizes[7::3], strict=True):
        if kernel not in _KERNELS:
            return f"it convolves with kernels of 1, 3, 5 or 7, not of {kernel}"
        if outgoing > _MAX_CHANNELS or incoming > _MAX_CHANNELS:
            return (
                f"it takes layers of up to {_MAX_CHANNELS} channels, "
                f"not from {incoming} to {outgoing}"
            )
    return None


def _run_native(
    coarse: Tensor,
    middle: Tensor,
    fine: Tensor,
    weights: AggregationWeights,
    parameters: list[Tensor],
    sizes: Sizes,
) -> Tensor:
    return torch.ops.vss_kernels.aggregate_affinity.default(
        coarse, middle, fine, parameters, sizes
    )[0]


@without_autocast
def _run_eager(
    coarse: Tensor, middle: Tensor, fine: Tensor, weights: AggregationWeights, *_: Any
) -> Tensor:
    return eager.aggregate_affinity(coarse, middle, fine, weights)


def _fake(
    coarse: Tensor, middle: Tensor, fine: Tensor, parameters: list[Tensor], layers: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = fine.new_empty((fine.shape[0], sum(layers[:5]), 2), dtype=torch.float32)
    packed = parameters[0].new_empty(sum(tensor.numel() for tensor in parameters))
    return fine.new_empty(fine.shape), statistics, packed


def _fake_backward(
    grad: Tensor,
    coarse: Tensor,
    middle: Tensor,
    fine: Tensor,
    packed: Tensor,
    statistics: Tensor,
    layers: list[int],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    maps = (
        scale.new_empty(scale.shape if needed else (0, 0, 0))
        for scale, needed in zip((coarse, middle, fine), needs, strict=False)
    )
    return (*maps, packed.new_empty(packed.shape))


if native.problem() is None:
    torch.library.register_fake("vss_kernels::aggregate_affinity", _fake)
    torch.library.register_fake("vss_kernels::aggregate_affinity_backward", _fake_backward)

operator = Operator(
    "aggregate_affinity",
    [
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", _run_eager, always, always),
    ],
)
