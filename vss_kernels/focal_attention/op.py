"""focal_attention as a registered operator: fake, autograd and the backends' conditions.

One operator serves the fused backends. It takes the geometry as plain numbers and finds the tables
itself, so that tracing sees neither the tables nor how they are kept.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native, triton_support
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels._runtime.registration import python_operator
from vss_kernels.focal_attention import eager, triton_launch
from vss_kernels.focal_attention.geometry import FocalGeometry, PooledLevel
from vss_kernels.focal_attention.key_value_layout import Context, as_buffer, as_maps
from vss_kernels.focal_attention.tables import inverse_tables, key_tables


@functools.cache
def _geometry(settings: tuple[int, ...]) -> FocalGeometry:
    """The geometry from window, expand, and kernel and stride of each pooled map."""
    window, expand, *levels = settings
    pooled = tuple(PooledLevel(*level) for level in zip(levels[::2], levels[1::2], strict=True))
    return FocalGeometry(window, expand, pooled)


def geometry_settings(geometry: FocalGeometry) -> list[int]:
    """The geometry as the operator takes it; see :func:`_geometry`."""
    levels = [number for level in geometry.pooled for number in level]
    return [geometry.window, geometry.expand, *levels]


@python_operator("focal_attention")
def focal_attention(
    query: Tensor,
    key_value: Tensor,
    bias: Tensor,
    rows: int,
    columns: int,
    settings: list[int],
    use_triton: bool,
) -> tuple[Tensor, Tensor]:
    """Attends from queries (B,Q,heads,D) to a buffer (B,N,2,heads,D).

    Also returns what the backward pass computes the softmax from: the largest logits and one over
    the sums of the exponentials relative to them, (B,heads,windows,2,P).
    """
    geometry = _geometry(tuple(settings))
    table = key_tables.get(geometry, (rows, columns), query.device)
    if use_triton:
        return triton_launch.attend(query, key_value, bias, table)
    return torch.ops.vss_kernels.focal_attend(query, key_value, bias, table)


@python_operator("focal_attention_backward")
def focal_attention_backward(
    grad: Tensor,
    query: Tensor,
    key_value: Tensor,
    bias: Tensor,
    out: Tensor,
    statistics: Tensor,
    rows: int,
    columns: int,
    settings: list[int],
    use_triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key_value and bias."""
    geometry = _geometry(tuple(settings))
    table = key_tables.get(geometry, (rows, columns), query.device)
    if use_triton:
        inverse = inverse_tables.get(geometry, (rows, columns), query.device)
        return triton_launch.attend_backward(
            grad, query, key_value, bias, out, statistics, table, inverse
        )
    return torch.ops.vss_kernels.focal_attend_backward(
        grad, query, key_value, bias, table, statistics
    )


@focal_attention.register_fake
def _(
    query: Tensor,
    key_value: Tensor,
    bias: Tensor,
    rows: int,
    columns: int,
    settings: list[int],
    use_triton: bool,
) -> tuple[Tensor, Tensor]:
    batch, heads, positions = query.shape[0], query.shape[2], bias.shape[1]
    statistics = query.new_empty(batch, heads, rows * columns, 2, positions, dtype=torch.float32)
    return query.new_empty(query.shape), statistics


@focal_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key_value: Tensor, bias: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    # Contiguous, as the kernels' results are, whatever strides the inputs have.
    results = [tensor.new_empty(tensor.shape) for tensor in (query, key_value, bias)]
    return results[0], results[1], results[2]


focal_attention.differentiate_by(focal_attention_backward, results=("out", "statistics"))


def _run_fused(
    query: Tensor, context: Context, bias: Tensor, geometry: FocalGeometry, use_triton: bool
) -> Tensor:
    side = geometry.window
    rows, columns = query.shape[1] // side, query.shape[2] // side
    sizes = (rows, columns, geometry_settings(geometry), use_triton)
    attended, _ = torch.ops.vss_kernels.focal_attention(
        query.flatten(1, 2), as_buffer(context), bias, *sizes
    )
    return attended.view(query.shape)


def _run_triton(query: Tensor, context: Context, bias: Tensor, geometry: FocalGeometry) -> Tensor:
    return _run_fused(query, context, bias, geometry, use_triton=True)


def _run_native(query: Tensor, context: Context, bias: Tensor, geometry: FocalGeometry) -> Tensor:
    return _run_fused(query, context, bias, geometry, use_triton=False)


def _run_eager(query: Tensor, context: Context, bias: Tensor, geometry: FocalGeometry) -> Tensor:
    (key, value), *pooled = as_maps(context, query.shape[1], query.shape[2], geometry)
    return eager.focal_attention(query, key, value, pooled, bias, geometry)


def _triton_can_run(query: Tensor, *_: Any) -> str | None:
    reason = triton_support.refuses(query)
    if reason is None and query.shape[-1] > triton_launch.LARGEST_DIM:
        reason = (
            f"it takes at most {triton_launch.LARGEST_DIM} channels a head, not {query.shape[-1]}"
        )
    return reason


def _native_can_run(query: Tensor, *_: Any) -> str | None:
    return native.refuses_cpu(query)


operator = Operator(
    "focal_attention",
    [
        Implementation("triton", _run_triton, _triton_can_run, triton_support.problem),
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(_run_eager), always, always),
    ],
)
