"""Geometries and inputs for the tests of focal_attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from vss_kernels import FocalGeometry, PooledLevel, focal_attention
from vss_kernels.focal_attention.key_value_layout import as_buffer

SMALL = FocalGeometry(3, 1, (PooledLevel(3, 1), PooledLevel(1, 2), PooledLevel(5, 1)))
GEOMETRIES = st.builds(
    lambda window, expand, levels: FocalGeometry(
        window, min(expand, window), tuple(PooledLevel(*level) for level in levels)
    ),
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3)), max_size=3),
)


def make_inputs(geometry, windows, batch=2, heads=2, dim=4, dtype=torch.float32, device="cpu"):
    """Query, key and value maps, pooled pairs and bias, as focal_attention takes them."""
    side = geometry.window
    shape = (batch, windows[0] * side, windows[1] * side, heads, dim)

    def random(*shape):
        return torch.randn(shape).to(device, dtype)

    query, key, value = (random(*shape) for _ in range(3))
    pooled = [
        tuple(random(batch, *cells, heads, dim) for _ in range(2))
        for cells in geometry.pooled_cells(windows)
    ]
    return query, key, value, pooled, random(heads, side**2, geometry.num_keys)


def flat_inputs(
    geometry, windows, batch, heads, dim, dtype=torch.float32, device="cpu"
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Returns a function of tensors alone, as the accuracy rule asks for, and its tensors."""
    query, key, value, pooled, bias = make_inputs(
        geometry, windows, batch, heads, dim, dtype, device
    )

    def run(query, key, value, bias, *rest):
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return focal_attention(query, key, value, pairs, bias, geometry)

    return run, (query, key, value, bias, *(tensor for pair in pooled for tensor in pair))


def token_inputs(geometry, windows, heads=2, dim=8, batch=2, device="cpu"):
    """Query, key-value buffer and bias, as attend_tokens takes them."""
    query, key, value, pooled, bias = make_inputs(
        geometry, windows, batch, heads, dim, device=device
    )
    return query, as_buffer([(key, value), *pooled]), bias
