"""Biases looked up in tables, with a gradient that is gathered and not scattered.

PyTorch's gradient of indexing sorts the indices anew at every step, in about ten kernels a table,
or adds with atomics. The indices never change here, so their inverse is a table as well: for each
entry, the places that look at it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def invert_index(index: Tensor, num_entries: int) -> Tensor:
    """Lists who looks at each entry of a table.

    Args:
        index: (P, L) int64 entries that the L keys of P queries look at; a query looks at no entry
            twice.
        num_entries: Entries of the table.

    Returns:
        (num_entries, P) int64 places, counted over the flattened index: for each entry that of each
        query, or P * L where the query does not look at it.
    """
    queries, keys = index.shape
    places = torch.arange(queries * keys).view(queries, keys)
    inverse = torch.full((num_entries, queries), queries * keys, dtype=torch.int64)
    return inverse.scatter_(0, index.t(), places.t())


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return table[:, index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        places = F.pad(grad.flatten(1), (0, 1))  # what fills up the inverse adds zero
        return places[:, inverse].sum(-1), None, None


def look_up(table: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Looks entries up.

    Args:
        table: (heads, entries).
        index: int64 entries, any shape (...).
        inverse: Their :func:`invert_index`.

    Returns:
        (heads, ...).
    """
    if torch.is_grad_enabled() and table.requires_grad:
        return _LookUp.apply(table, index, inverse)  # type: ignore[no-untyped-call]
    return table[:, index]


__all__ = ["invert_index", "look_up"]
