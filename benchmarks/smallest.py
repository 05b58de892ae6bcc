"""Every operator on the smallest inputs that use all of it.

There, calling an operator costs more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import vss_kernels
from tests.support.aggregation_cases import PUBLISHED, aggregate_with, make_maps, make_parameters
from vss_kernels import FocalGeometry
from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.tables import num_tokens

CLASSES = 5
TOKENS, KEPT, CHANNELS = 6, 3, 16


@dataclass(frozen=True)
class Case:
    """An operator and what it is called with.

    Attributes:
        run: Calls it on tensors.
        inputs: The tensors, on the CPU.
        differentiable: Whether the result has gradients; otherwise it holds positions or classes.
    """

    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    differentiable: bool = True

    def on(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns the inputs on a device, those that are not integers in a dtype."""
        return tuple(
            tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            for tensor in self.inputs
        )


def _select_tokens() -> Case:
    inputs = torch.randn(1, 6, CHANNELS), torch.randn(1, 2, TOKENS, CHANNELS)
    return Case(lambda *tokens: vss_kernels.select_tokens(*tokens, KEPT), inputs, False)


def _positions() -> Tensor:
    return torch.rand(1, 2, TOKENS).argsort(-1)[..., :KEPT].sort(-1).values


def _masked_affinity() -> Case:
    tokens = torch.randn(1, 24, CHANNELS), torch.randn(1, 2, TOKENS, CHANNELS)
    return Case(vss_kernels.masked_affinity, (*tokens, _positions()))


def _aggregate_affinity() -> Case:
    chains = PUBLISHED["b1"]
    return Case(aggregate_with(chains), (*make_maps(2, 3, 3), make_parameters(chains)))


def _attend_selected() -> Case:
    affinity, value = torch.randn(1, 2, KEPT, 24).relu(), torch.randn(1, 2, TOKENS, CHANNELS)
    return Case(vss_kernels.attend_selected, (affinity, value, _positions()))


def _depthwise_gelu() -> Case:
    inputs = torch.randn(1, 6, 7, CHANNELS), torch.randn(CHANNELS, 1, 3, 3), torch.randn(CHANNELS)
    return Case(vss_kernels.depthwise_gelu, inputs)


def _focal_pool() -> Case:
    inputs = torch.randn(1, 7, 14, 8), torch.randn(9), torch.randn(())
    return Case(lambda *tensors: vss_kernels.focal_pool(*tensors, (2, 4)), inputs)


def _focal_attention() -> Case:
    geometry, grid, heads, head_dim = FocalGeometry(), (1, 2), 1, 16
    inputs = (
        torch.randn(1, 7, 14, heads, head_dim),
        torch.randn(1, num_tokens(geometry, grid), 2, heads, head_dim),
        torch.randn(heads, 49, geometry.num_keys),
    )
    return Case(lambda *tensors: attend_tokens(*tensors, geometry), inputs)


def _fuse_pyramid() -> Case:
    levels = tuple(torch.randn(1, 8, 8 >> level, 16 >> level) for level in range(4))
    return Case(lambda *tensors: vss_kernels.fuse_pyramid(tensors), levels)


def _upsample_cross_entropy() -> Case:
    labels = torch.randint(CLASSES, (1, 16, 16), dtype=torch.uint8)
    return Case(vss_kernels.upsample_cross_entropy, (torch.randn(1, CLASSES, 4, 4), labels))


def _add_layer_norm() -> Case:
    inputs = torch.randn(1, 6, CHANNELS), torch.randn(CHANNELS), torch.randn(CHANNELS)
    return Case(both_results_of_add_layer_norm, (*inputs, torch.randn(1, 6, CHANNELS)))


def both_results_of_add_layer_norm(*tensors: Tensor) -> Tensor:
    """Calls add_layer_norm; returns the sum and its normalisation as one tensor."""
    return torch.stack(vss_kernels.add_layer_norm(*tensors))


def _upsample_argmax() -> Case:
    logits = torch.randn(1, CLASSES, 4, 4)
    return Case(lambda tensor: vss_kernels.upsample_argmax(tensor, (16, 16)), (logits,), False)


CASES: dict[str, Callable[[], Case]] = {
    "select_tokens": _select_tokens,
    "masked_affinity": _masked_affinity,
    "aggregate_affinity": _aggregate_affinity,
    "attend_selected": _attend_selected,
    "depthwise_gelu": _depthwise_gelu,
    "focal_pool": _focal_pool,
    "focal_attention": _focal_attention,
    "fuse_pyramid": _fuse_pyramid,
    "upsample_cross_entropy": _upsample_cross_entropy,
    "upsample_argmax": _upsample_argmax,
    "add_layer_norm": _add_layer_norm,
}
