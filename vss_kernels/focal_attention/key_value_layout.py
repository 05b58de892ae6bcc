"""What a window's queries attend to, in either of two layouts, and how to get the other one.

As *maps*: (key, value) pairs of the target and of each pooled map, (B,rows,columns,heads,D). As
one *buffer* of tokens, (B,N,2,heads,D): the target's tokens row-major, then each pooled map's, key
beside value. The fused operators index the buffer, which one linear layer can produce; the eager
definition rolls and unfolds maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from vss_kernels.focal_attention.geometry import FocalGeometry

Context: TypeAlias = Tensor | Sequence[tuple[Tensor, Tensor]]


def as_buffer(context: Context) -> Tensor:
    """Returns the context as one buffer; copies maps."""
    if isinstance(context, Tensor):
        return context
    keys = torch.cat([key.flatten(1, 2) for key, _ in context], dim=1)
    values = torch.cat([value.flatten(1, 2) for _, value in context], dim=1)
    return torch.stack([keys, values], dim=2)


def as_maps(
    context: Context, height: int, width: int, geometry: FocalGeometry
) -> Sequence[tuple[Tensor, Tensor]]:
    """Returns the context as maps for a target of the given size; views of a buffer."""
    if not isinstance(context, Tensor):
        return context
    windows = (height // geometry.window, width // geometry.window)
    sizes = [(height, width), *geometry.pooled_cells(windows)]
    groups = context.split([rows * columns for rows, columns in sizes], dim=1)
    return [
        (group[:, :, 0].unflatten(1, size), group[:, :, 1].unflatten(1, size))
        for group, size in zip(groups, sizes, strict=True)
    ]
