"""Attention of many queries over few keys, in groups of queries that fill a GPU on the way back.

The backward kernels of PyTorch's attention give each block a stretch of keys and let it go over all
queries. With 225 keys that is two blocks for an image and head, on a GPU of over a hundred
multiprocessors. docs/gpu.md has the derivation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

KEYS_A_BLOCK = 128
"""Keys that one block of a backward kernel owns."""

MULTIPROCESSORS = 132
"""Blocks that run at a time, one on each multiprocessor of an H100 or H200."""

FEWEST_QUERIES = 512
"""Queries below which a group's own start and end are no longer small beside its work."""


def num_groups(batch: int, heads: int, queries: int, keys: int) -> int:
    """Chooses the number of groups for which a backward pass should take the least time.

    With g groups there are g times as many blocks, each with a g-th of the work; they run in waves
    of :data:`MULTIPROCESSORS`.

    Args:
        batch: Images.
        heads: Heads.
        queries: Queries of an image and head.
        keys: Keys of an image and head.

    Returns:
        A divisor of `queries`; the smallest of equally good ones.
    """
    blocks = max(1, batch * heads * -(-keys // KEYS_A_BLOCK))

    def time(groups: int) -> float:
        return -(-blocks * groups // MULTIPROCESSORS) / groups

    most = max(1, queries // FEWEST_QUERIES)
    return min((g for g in range(1, most + 1) if queries % g == 0), key=lambda g: (time(g), g))


def attend_in_groups(query: Tensor, key_value: Tensor, groups: int = 1) -> Tensor:
    """Computes attention, each group of queries as if it were of an image of its own.

    Args:
        query: (N, Q, heads, D).
        key_value: Keys and values (N, n, 2, heads, D).
        groups: Number of groups; must divide Q.

    Returns:
        (N, Q, heads, D). The gradient of keys and values is summed over the groups.
    """
    count, queries, heads, dim = query.shape
    query = query.reshape(count * groups, queries // groups, heads, dim).transpose(1, 2)
    if groups > 1:
        key_value = key_value[:, None].expand(-1, groups, -1, -1, -1, -1).flatten(0, 1)
    key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value)
    return attended.transpose(1, 2).reshape(count, queries, heads, dim)


__all__ = ["attend_in_groups", "num_groups"]
