"""focal_attention: CFFM's attention of windows over near, pooled and past context."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels._runtime.checks import check_same_kind, check_shape, check_tensor, describe
from vss_kernels.focal_attention.geometry import FocalGeometry, check_windows
from vss_kernels.focal_attention.op import operator
from vss_kernels.focal_attention.tables import num_tokens

__all__ = ["attend_tokens", "focal_attention"]

_NAME = "focal_attention"


def focal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooled: Sequence[tuple[Tensor, Tensor]],
    bias: Tensor,
    geometry: FocalGeometry,
) -> Tensor:
    """Attends from each window of the target to keys at several distances and granularities.

    The keys of a window are, in this order: its own positions; the ring of positions around it,
    taken from the map rolled by ``(-e, -e)``, ``(-e, e)``, ``(e, -e)``, ``(e, e)`` for
    ``e = geometry.expand`` (circular, so borders wrap), row-major; and of each pooled map the
    ``kernel x kernel`` cells around the window. Cells beyond the border of a pooled map have key
    and value 0 and -100 added to their logits. Queries are scaled by ``D ** -0.5``. This is the
    attention of CFFM (Sun et al., CVPR 2022).

    Args:
        query: Queries of shape (B, H, W, heads, D), H and W multiples of ``geometry.window``;
            float32, float16, bfloat16 or float64, any strides.
        key: Keys of the same map, same shape and dtype as ``query``.
        value: Values of the same map, same shape and dtype as ``query``.
        pooled: A (key, value) pair for each of ``geometry.pooled``, both of shape
            (B, rows * stride, columns * stride, heads, D) for ``rows x columns`` windows.
        bias: Added to the logits, shape (heads, window ** 2, L) with ``L = geometry.num_keys``.
        geometry: Which keys a window sees.

    Returns:
        Tensor of shape (B, H, W, heads, D), contiguous, dtype of ``query``. Logits are summed and
        the softmax is computed in float32 (float64 for float64).

    Raises:
        TypeError: An argument is of the wrong type, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, there are not as many pooled maps as the geometry has, or
            the devices differ.

    Example:
        >>> geometry = vss_kernels.FocalGeometry(
        ...     window=2, expand=1, pooled=(vss_kernels.PooledLevel(kernel=3, stride=1),)
        ... )
        >>> query, key, value = torch.randn(3, 1, 4, 6, 8, 16).unbind(0)  # 8 heads of 16 channels
        >>> pooled = [(torch.randn(1, 2, 3, 8, 16), torch.randn(1, 2, 3, 8, 16))]
        >>> bias = torch.zeros(8, 4, geometry.num_keys)
        >>> vss_kernels.focal_attention(query, key, value, pooled, bias, geometry).shape
        torch.Size([1, 4, 6, 8, 16])
    """
    if not isinstance(geometry, FocalGeometry):
        raise TypeError(f"{_NAME}: geometry must be a FocalGeometry, got {describe(geometry)}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(_NAME, name, tensor, "B,H,W,heads,D")
    check_tensor(_NAME, "bias", bias, "heads,window**2,L")
    if not isinstance(pooled, Sequence):
        raise TypeError(f"{_NAME}: pooled must be a sequence of pairs, got {describe(pooled)}")
    if len(pooled) != len(geometry.pooled):
        raise ValueError(
            f"{_NAME}: pooled must hold {len(geometry.pooled)} (key, value) pairs as the geometry "
            f"says, got {len(pooled)}"
        )
    batch, height, width, heads, dim = query.shape
    windows = check_windows(_NAME, height, width, geometry)
    check_shape(_NAME, "key", key, query.shape)
    check_shape(_NAME, "value", value, query.shape)
    check_shape(_NAME, "bias", bias, (heads, geometry.window**2, geometry.num_keys))

    named = {"query": query, "key": key, "value": value, "bias": bias}
    for position, (pair, cells) in enumerate(
        zip(pooled, geometry.pooled_cells(windows), strict=True)
    ):
        if len(pair) != 2:
            raise ValueError(
                f"{_NAME}: pooled[{position}] must be a pair (key, value), got {len(pair)} entries"
            )
        for part, tensor in zip(("key", "value"), pair, strict=True):
            name = f"pooled[{position}] {part}"
            check_tensor(_NAME, name, tensor, "B,rows,columns,heads,D")
            check_shape(_NAME, name, tensor, (batch, *cells, heads, dim))
            named[name] = tensor
    named = dict(zip(named, cast_inputs(*named.values()), strict=True))
    check_same_kind(_NAME, **named)
    query, key, value, bias, *rest = named.values()
    pairs = [(key, value), *zip(rest[::2], rest[1::2], strict=True)]
    return operator(query, pairs, bias, geometry)


def attend_tokens(
    query: Tensor, key_value: Tensor, bias: Tensor, geometry: FocalGeometry
) -> Tensor:
    """:func:`focal_attention` with all keys and values in one buffer, as one projection makes them.

    Saves the fused backends the copies that collect separate maps into the buffer.

    Args:
        query: Queries of shape (B, H, W, heads, D), as for :func:`focal_attention`.
        key_value: Keys and values of shape (B, N, 2, heads, D): the H * W tokens of the target,
            row-major, then the tokens of each pooled map in turn.
        bias: Added to the logits, shape (heads, window ** 2, L) with ``L = geometry.num_keys``.
        geometry: Which keys a window sees.

    Returns:
        Tensor of shape (B, H, W, heads, D), contiguous, dtype of ``query``.

    Raises:
        TypeError: The dtypes are unsupported or differ.
        ValueError: A shape does not fit, or the devices differ.
    """
    if not isinstance(geometry, FocalGeometry):
        raise TypeError(f"{_NAME}: geometry must be a FocalGeometry, got {describe(geometry)}")
    check_tensor(_NAME, "query", query, "B,H,W,heads,D")
    check_tensor(_NAME, "key_value", key_value, "B,N,2,heads,D")
    check_tensor(_NAME, "bias", bias, "heads,window**2,L")
    batch, height, width, heads, dim = query.shape
    windows = check_windows(_NAME, height, width, geometry)
    tokens = num_tokens(geometry, windows)
    check_shape(_NAME, "key_value", key_value, (batch, tokens, 2, heads, dim))
    check_shape(_NAME, "bias", bias, (heads, geometry.window**2, geometry.num_keys))
    query, key_value, bias = cast_inputs(query, key_value, bias)
    check_same_kind(_NAME, query=query, key_value=key_value, bias=bias)
    return operator(query, key_value, bias, geometry)
