"""Biases looked up in tables, with a gradient that is gathered and not scattered.

PyTorch's gradient of indexing sorts the indices anew at every step, in about ten kernels a table,
or adds with atomics. The indices never change here, so their inverse is a table as well: for each
entry, the places that look at it. Most entries are looked at from one place only; those take their
gradient as it comes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def invert_index(index: Tensor, num_entries: int, own: slice) -> Tensor:
    """Lists who looks at each entry of a table that several places may look at.

    Args:
        index: (P, L) int64 entries that the L keys of P queries look at; a query looks at no entry
            twice.
        num_entries: Entries before those of the keys ``own``.
        own: Keys that have an entry for each query. Those entries come last, ordered by query and
            key, so that nothing need be listed for them.

    Returns:
        (num_entries, P) int64 places, counted over the flattened index: for each entry that of each
        query, or P * L where the query does not look at it.
    """
    queries, keys = index.shape
    places = torch.arange(queries * keys).view(queries, keys)
    inverse = torch.full((num_entries, queries), queries * keys, dtype=torch.int64)
    # By slices, not by a mask: a model may be built without memory, where no mask has values.
    for others in (slice(own.start), slice(own.stop, keys)):
        inverse.scatter_(0, index[:, others].t(), places[:, others].t())
    return inverse


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, inverse: Tensor, own: slice) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.own = own
        return table[:, index]

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        places = F.pad(grad.flatten(1), (0, 1))  # what fills up the inverse adds zero
        common = places[:, inverse].sum(-1)
        return torch.cat([common, grad[:, :, ctx.own].flatten(1)], dim=1), None, None, None


def look_up(table: Tensor, index: Tensor, inverse: Tensor, own: slice) -> Tensor:
    """Looks entries up.

    Args:
        table: (heads, entries).
        index: (P, L) int64 entries.
        inverse: Their :func:`invert_index`.
        own: Keys that have an entry for each query, as there.

    Returns:
        (heads, P, L).
    """
    if torch.is_grad_enabled() and table.requires_grad:
        return _LookUp.apply(table, index, inverse, own)  # type: ignore[no-untyped-call]
    return table[:, index]


__all__ = ["invert_index", "look_up"]
