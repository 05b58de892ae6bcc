"""Biases looked up in tables, with a gradient that is gathered and not scattered.

PyTorch's gradient of indexing sorts the indices anew at every step, in about ten kernels a table,
or adds with atomics. The indices never change here, so their inverse is a table as well: for each
entry, the places that look at it. Most entries are looked at from one place only; those take their
gradient as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def _side_by_side(tables: Sequence[Tensor], around: Tensor) -> Tensor:
    """All entries of each head, (heads, entries), the ring's last."""
    return torch.cat([tables[0].T, *tables[1:], around[0].flatten(1)], dim=1)


def _select(entries: Tensor, index: Tensor) -> Tensor:
    """``entries[:, index]``, at a fraction of what indexing by a matrix costs the host."""
    return entries.index_select(1, index.flatten()).view(-1, *index.shape)


class _LookUp(torch.autograd.Function):
    """One step for autograd: on small maps a step costs a GPU's host more than it does the GPU."""

    @staticmethod
    def forward(
        ctx: Any, index: Tensor, inverse: Tensor, own: slice, around: Tensor, *tables: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.own = own
        ctx.lengths = [tables[0].shape[0], *(table.shape[1] for table in tables[1:])]
        return _select(_side_by_side(tables, around), index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        places = F.pad(grad.flatten(1), (0, 1))  # what fills up the inverse adds zero
        window, *pooled = _select(places, inverse).sum(-1).split(ctx.lengths, dim=1)
        return None, None, None, grad[None, :, :, ctx.own], window.T, *pooled


def look_up(
    tables: Sequence[Tensor], around: Tensor, index: Tensor, inverse: Tensor, own: slice
) -> Tensor:
    """Looks entries up.

    Args:
        tables: The window's table (entries, heads), then the pooled maps', (heads, entries) each.
        around: An entry for each query and key ``own``, (1, heads, P, keys).
        index: (P, L) int64 entries, counted through the tables in this order, the ring's last.
        inverse: Their :func:`invert_index`.
        own: Keys that have an entry for each query, as there.

    Returns:
        (heads, P, L).
    """
    if torch.is_grad_enabled() and any(table.requires_grad for table in (*tables, around)):
        return _LookUp.apply(  # type: ignore[no-untyped-call]
            index, inverse, own, around, *tables
        )
    return _select(_side_by_side(tables, around), index)


__all__ = ["invert_index", "look_up"]
