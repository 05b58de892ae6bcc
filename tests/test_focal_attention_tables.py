"""focal_attention's tables: the inverse of the key table, and how tables are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_focal_attention import GEOMETRIES, SMALL
from vss_kernels import FocalGeometry
from vss_kernels.focal.attention.tables import (
    KEPT,
    LONGEST_ITEM,
    TILE,
    TableCache,
    invert,
    num_tokens,
)
from vss_kernels.focal.geometry import PADDING, key_table

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 4))


def inverse_by_hand(table, tokens):
    """The fields of the inverse table as lists, token by token."""
    seen_by = {token: [] for token in range(tokens)}
    for window, row in enumerate(table.tolist()):
        for slot, token in enumerate(row):
            if token != PADDING:
                seen_by[token].append((window, slot))
    ranked = sorted(seen_by, key=lambda token: ([window for window, _ in seen_by[token]], token))
    fields = {name: [] for name in ("tokens", "windows", "slots", "items", "sums")}
    parts = 0
    for number, start in enumerate(range(0, tokens, TILE)):
        tile = ranked[start : start + TILE]
        fields["tokens"].append(tile + [PADDING] * (TILE - len(tile)))
        entries = {}
        for place, token in enumerate(tile):
            seen = [window for window, _ in seen_by[token]]
            for position, (window, slot) in enumerate(seen_by[token]):
                repeat = seen[:position].count(window)
                entries.setdefault((window, repeat), [PADDING] * TILE)[place] = slot
        first = len(fields["windows"])
        for window, repeat in sorted(entries):
            fields["windows"].append(window)
            fields["slots"].append(entries[window, repeat])
        end = len(fields["windows"])
        starts = list(range(first, end, LONGEST_ITEM)) or [first]
        for item in starts:
            part = PADDING if len(starts) == 1 else parts
            fields["items"].append([number, item, min(item + LONGEST_ITEM, end), part])
            parts += len(starts) > 1
        if len(starts) > 1:
            fields["sums"].append([number, parts - len(starts), parts])
    return fields, parts


def assert_is_the_inverse(geometry, grid):
    table, tokens = key_table(geometry, grid).numpy(), num_tokens(geometry, grid)
    inverse = invert(table, tokens)
    fields, parts = inverse_by_hand(table, tokens)
    for name, expected in fields.items():
        found = getattr(inverse, name)
        assert found.dtype == torch.int32, name
        assert found.is_contiguous(), name
        assert found.tolist() == expected, name
    assert inverse.num_parts == parts


@settings(max_examples=40, deadline=None)
@given(geometry=GEOMETRIES, grid=GRIDS)
def test_inverse_table_is_the_definition(geometry, grid):
    assert_is_the_inverse(geometry, grid)


@pytest.mark.parametrize(
    ("geometry", "grid"), [(FocalGeometry(), (9, 16)), (FocalGeometry(), (1, 1)), (SMALL, (3, 5))]
)
def test_inverse_table_of_published_sizes(geometry, grid):
    assert_is_the_inverse(geometry, grid)


@settings(max_examples=30, deadline=None)
@given(geometry=GEOMETRIES, grid=GRIDS)
def test_inverse_table_lists_every_slot_once(geometry, grid):
    table = key_table(geometry, grid).numpy()
    tokens = num_tokens(geometry, grid)
    inverse = invert(table, tokens)
    owned = inverse.tokens[inverse.tokens != PADDING]
    assert sorted(owned.tolist()) == list(range(tokens))
    found, parts = [], set()
    for tile, first, end, part in inverse.items.tolist():
        assert end - first <= LONGEST_ITEM
        if part != PADDING:
            parts.add(part)
            row = next(row for row in inverse.sums.tolist() if row[0] == tile)
            assert row[1] <= part < row[2]
        for entry in range(first, end):
            window = int(inverse.windows[entry])
            for token, slot in zip(
                inverse.tokens[tile].tolist(), inverse.slots[entry].tolist(), strict=True
            ):
                if slot != PADDING:
                    assert table[window, slot] == token
                    found.append((window, slot))
    assert sorted(found) == list(zip(*np.nonzero(table != PADDING), strict=True))
    assert parts == set(range(inverse.num_parts))


def test_tables_are_kept_within_a_bound():
    built = []
    cache = TableCache(lambda geometry, grid, device: built.append(grid) or grid)
    geometry, device = FocalGeometry(), torch.device("cpu")
    for number in range(1, KEPT + 2):
        assert cache.get(geometry, (number, 1), device) == (number, 1)
        assert cache.get(geometry, (1, 1), device) == (1, 1)  # used again and again, so kept
    assert len(cache) == KEPT
    assert len(built) == KEPT + 1
    cache.get(geometry, (2, 1), device)  # the one that was dropped
    assert len(built) == KEPT + 2
