"""focal_attention's tables: the inverse of the key table, and how tables are kept."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.focal_cases import GEOMETRIES, SMALL
from vss_kernels import FocalGeometry
from vss_kernels.focal_attention.geometry import PADDING, key_table
from vss_kernels.focal_attention.tables import (
    FEW_AND_MANY,
    KEPT,
    LONGEST_ITEM,
    TILE,
    TableCache,
    invert,
    num_tokens,
)

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 4))


def inverse_by_hand(table, tokens):
    """Returns the fields of the inverse table as lists, token by token."""
    seen_by = {token: [] for token in range(tokens)}
    for window, line in enumerate(table.tolist()):
        for slot, token in enumerate(line):
            if token != PADDING:
                seen_by[token].append((window, slot))
    # token: {(window, number of this row among those the token has there): its one or two slots}
    slots_of = {token: {} for token in range(tokens)}
    for token, seen in seen_by.items():
        for window in sorted({window for window, _ in seen}):
            here = [slot for other, slot in seen if other == window]
            for start in range(0, len(here), 2):
                slots_of[token][window, start // 2] = tuple(here[start : start + 2])
    slots = [(slot,) for slot in range(table.shape[1])]
    slots += sorted({pair for rows in slots_of.values() for pair in rows.values() if pair[1:]})

    def order(token):
        windows = [window for window, _ in seen_by[token]]
        return sum(len(windows) > limit for limit in FEW_AND_MANY), windows, token

    ranked = sorted(range(tokens), key=order)
    fields = {name: [] for name in ("tokens", "windows", "rows", "items", "sums")}
    fields["sources"] = [[*row, PADDING][:2] for row in slots]
    parts = 0
    for number, start in enumerate(range(0, tokens, TILE)):
        tile = ranked[start : start + TILE]
        fields["tokens"].append(tile + [PADDING] * (TILE - len(tile)))
        entries = {}
        for place, token in enumerate(tile):
            for key, row in slots_of[token].items():
                entries.setdefault(key, [PADDING] * TILE)[place] = slots.index(row)
        first = len(fields["windows"])
        for key in sorted(entries):
            fields["windows"].append(key[0])
            fields["rows"].append(entries[key])
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
            for token, row in zip(
                inverse.tokens[tile].tolist(), inverse.rows[entry].tolist(), strict=True
            ):
                for slot in inverse.sources[row].tolist() if row != PADDING else ():
                    if slot != PADDING:
                        assert table[window, slot] == token
                        found.append((window, slot))
    assert sorted(found) == list(zip(*np.nonzero(table != PADDING), strict=True))
    assert parts == set(range(inverse.num_parts))


def test_published_tiles_are_shared_by_few_windows():
    # What the time of the gradient of keys and values follows: without the order by classes there
    # are more than twice as many entries.
    geometry, grid = FocalGeometry(), (9, 9)
    inverse = invert(key_table(geometry, grid).numpy(), num_tokens(geometry, grid))
    places = inverse.rows.numel()
    used = int((inverse.rows != PADDING).sum())
    assert used > 0.35 * places
    assert len(inverse.sources) == geometry.num_keys + 12  # the ring's positions with two slots


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


def test_a_gpus_tables_are_built_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler warming up for a CUDA graph claims what the thread that calls it allocates."""
    waited: list[int] = []

    class Stream:
        def synchronize(self) -> None:
            waited.append(threading.get_ident())

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    built: list[int] = []

    def build(*_: object) -> torch.Tensor:
        assert not torch.is_inference_mode_enabled()
        built.append(threading.get_ident())
        return torch.zeros(1)

    cache = TableCache(build)
    with torch.inference_mode():
        cache.get(SMALL, (1, 1), torch.device("cuda", 0))
        cache.get(SMALL, (1, 1), torch.device("cpu"))
    assert built[0] == waited[0] != threading.get_ident()
    assert built[1] == threading.get_ident()
    assert len(built) == 2
    assert len(waited) == 1
