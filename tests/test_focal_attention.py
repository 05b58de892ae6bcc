"""focal_attention and its geometry: definition, key tables, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support.focal_cases import GEOMETRIES, SMALL, make_inputs
from tests.support.layouts import stored_in_order
from tests.support.precision import SLACK, error
from vss_kernels import FocalGeometry, PooledLevel, focal_attention
from vss_kernels.focal_attention.geometry import PADDING, key_table, relative_position_index


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def keys_by_hand(geometry, windows, row, column):
    """(map, y, x) of each key of one window; the target is map 0; None for padding."""
    side, reach = geometry.window, geometry.expand
    height, width = windows[0] * side, windows[1] * side
    grid = [(y, x) for y in range(side) for x in range(side)]
    keys = [(0, row * side + y, column * side + x) for y, x in grid]
    for down in (-reach, reach):
        for right in (-reach, reach):
            for y, x in grid:
                # torch.roll by `down` puts at y what was at y - down.
                if not (0 <= y - down < side and 0 <= x - right < side):
                    source_y = (row * side + y - down) % height
                    keys.append((0, source_y, (column * side + x - right) % width))
    for number, (kernel, stride) in enumerate(geometry.pooled, start=1):
        for i in range(kernel):
            for j in range(kernel):
                y, x = row * stride + i - kernel // 2, column * stride + j - kernel // 2
                inside = 0 <= y < windows[0] * stride and 0 <= x < windows[1] * stride
                keys.append((number, y, x) if inside else None)
    return keys


def attend_by_hand(query, key, value, pooled, bias, geometry):
    batch, height, width, heads, dim = query.shape
    side = geometry.window
    windows = (height // side, width // side)
    key_maps = [key, *(pair[0] for pair in pooled)]
    value_maps = [value, *(pair[1] for pair in pooled)]
    out = torch.zeros_like(query)
    for row in range(windows[0]):
        for column in range(windows[1]):
            places = keys_by_hand(geometry, windows, row, column)
            for number in range(side**2):
                y, x = row * side + number // side, column * side + number % side
                for b in range(batch):
                    for head in range(heads):
                        logits = torch.zeros(len(places), dtype=torch.float64)
                        values = torch.zeros(len(places), dim, dtype=torch.float64)
                        for slot, place in enumerate(places):
                            logits[slot] = bias[head, number, slot]
                            if place is None:
                                logits[slot] -= 100
                                continue
                            which, key_y, key_x = place
                            k = key_maps[which][b, key_y, key_x, head]
                            logits[slot] += (query[b, y, x, head] @ k) / dim**0.5
                            values[slot] = value_maps[which][b, key_y, key_x, head]
                        out[b, y, x, head] = logits.softmax(0) @ values
    return out


@pytest.mark.parametrize(
    ("geometry", "windows"), [(SMALL, (1, 2)), (FocalGeometry(2, 2, ()), (2, 2))]
)
def test_is_the_definition(geometry, windows):
    inputs = make_inputs(geometry, windows, batch=1, dtype=torch.float64)
    expected = attend_by_hand(*inputs, geometry)
    torch.testing.assert_close(focal_attention(*inputs, geometry), expected, rtol=0, atol=1e-12)


def test_counts_of_the_published_geometry():
    geometry = FocalGeometry()
    assert geometry.num_keys == 289
    assert geometry.around_keys == 132
    assert hash(geometry) == hash(FocalGeometry(7, 3))


@settings(max_examples=60, deadline=None)
@given(geometry=GEOMETRIES, windows=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_key_table_lists_the_positions_in_one_buffer(geometry, windows):
    table = key_table(geometry, windows)
    assert table.dtype == torch.int32
    assert table.shape == (windows[0] * windows[1], geometry.num_keys)
    side = geometry.window
    sizes = [(windows[0] * side, windows[1] * side), *geometry.pooled_cells(windows)]
    starts = [sum(h * w for h, w in sizes[:number]) for number in range(len(sizes))]
    for number, line in enumerate(table.tolist()):
        places = keys_by_hand(geometry, windows, number // windows[1], number % windows[1])
        expected = [
            PADDING
            if place is None
            else starts[place[0]] + place[1] * sizes[place[0]][1] + place[2]
            for place in places
        ]
        assert line == expected


def attend_by_table(query, key, value, pooled, bias, geometry):
    """Returns the same attention as plain attention over gathered rows of one token buffer."""
    batch, height, width, heads, dim = query.shape
    side = geometry.window
    rows, columns = height // side, width // side
    table = key_table(geometry, (rows, columns)).long()

    def gather(first, others):
        buffer = torch.cat([tensor.flatten(1, 2) for tensor in (first, *others)], dim=1)
        gathered = buffer[:, table.clamp(min=0)]  # (B, windows, L, heads, D)
        return gathered * (table != PADDING)[None, :, :, None, None]

    keys = gather(key, [pair[0] for pair in pooled])
    values = gather(value, [pair[1] for pair in pooled])
    queries = query.reshape(batch, rows, side, columns, side, heads, dim)
    queries = queries.transpose(2, 3).reshape(batch, rows * columns, side**2, heads, dim)
    logits = torch.einsum("bwqhd,bwkhd->bwhqk", queries * dim**-0.5, keys) + bias
    logits = logits + (table == PADDING)[None, :, None, None, :] * -100.0
    attended = torch.einsum("bwhqk,bwkhd->bwqhd", logits.softmax(-1), values)
    attended = attended.reshape(batch, rows, columns, side, side, heads, dim).transpose(2, 3)
    return attended.reshape(query.shape)


@settings(max_examples=40, deadline=None)
@given(
    geometry=GEOMETRIES,
    windows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(0, 2),
    orders=st.tuples(*[st.permutations(range(5))] * 4),
)
def test_equals_the_gathered_attention_at_any_size_and_layout(geometry, windows, batch, orders):
    query, key, value, pooled, bias = make_inputs(geometry, windows, batch, dtype=torch.float64)
    expected = attend_by_table(query, key, value, pooled, bias, geometry)
    query, key, value = (
        stored_in_order(tensor, order)
        for tensor, order in zip((query, key, value), orders, strict=False)
    )
    pooled = [tuple(stored_in_order(tensor, orders[3]) for tensor in pair) for pair in pooled]
    attended = focal_attention(query, key, value, pooled, bias, geometry)
    assert attended.is_contiguous()
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [2, 7])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_relative_position_index(window, kernel):
    index = relative_position_index(window, kernel)
    side = window + kernel - 1
    assert index.shape == (window**2, kernel**2)
    for q in range(window**2):
        for k in range(kernel**2):
            down = q // window - k // kernel + kernel - 1
            right = q % window - k % kernel + kernel - 1
            assert index[q, k] == down * side + right
    assert sorted(set(index.flatten().tolist())) == list(range(side**2))


def test_gradients():
    geometry = FocalGeometry(2, 1, (PooledLevel(3, 1), PooledLevel(1, 2)))
    query, key, value, pooled, bias = make_inputs(geometry, (1, 2), 1, 1, 2, torch.float64)
    flat = [tensor for pair in pooled for tensor in pair]

    def run(query, key, value, bias, *rest):
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return focal_attention(query, key, value, pairs, bias, geometry)

    inputs = [tensor.requires_grad_() for tensor in (query, key, value, bias, *flat)]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_softmax_is_wide(dtype):
    # Equal logits near 200: in half precision they, and so the probabilities, would fall apart.
    query, key, value, pooled, bias = make_inputs(SMALL, (2, 2), dtype=dtype)
    inputs = (query * 0, key, value, pooled, bias * 0 + 200)
    attended = focal_attention(*inputs, SMALL)
    assert attended.dtype == dtype
    pairs = [tuple(tensor.double() for tensor in pair) for pair in pooled]
    wide = (query.double() * 0, key.double(), value.double(), pairs, bias.double() * 0 + 200)
    assert error(attended, focal_attention(*wide, SMALL)) < 4 * SLACK[dtype]


@pytest.mark.parametrize(
    ("change", "error_type", "message"),
    [
        (lambda a: {"query": a["query"][0]}, ValueError, r"5 dimensions \(B,H,W,heads,D\)"),
        (
            lambda a: {"query": a["query"][:, 1:]},
            ValueError,
            "positive multiples of the window 3, got 5 x 3",
        ),
        (lambda a: {"key": a["key"][:, :3]}, ValueError, r"key must have shape \(2, 6, 3, 2, 4\)"),
        (lambda a: {"value": a["value"].half()}, TypeError, "value is torch.float16"),
        (lambda a: {"bias": a["bias"][:, :, 1:]}, ValueError, r"bias must have shape \(2, 9, "),
        (lambda a: {"pooled": a["pooled"][1:]}, ValueError, r"3 \(key, value\) pairs.*got 2"),
        (
            lambda a: {"pooled": [a["pooled"][0][:1], *a["pooled"][1:]]},
            ValueError,
            r"pooled\[0\] must be a pair",
        ),
        (
            lambda a: {"pooled": [a["pooled"][1], *a["pooled"][1:]]},
            ValueError,
            r"pooled\[0\] key must have shape \(2, 2, 1, 2, 4\)",
        ),
        (lambda a: {"geometry": 7}, TypeError, "geometry must be a FocalGeometry"),
    ],
)
def test_bad_input_is_named(change, error_type, message):
    names = ("query", "key", "value", "pooled", "bias")
    arguments = dict(zip(names, make_inputs(SMALL, (2, 1)), strict=True))
    arguments["geometry"] = SMALL
    with pytest.raises(error_type, match=message):
        focal_attention(**{**arguments, **change(arguments)})


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"expand": 8}, "expand must be between 0 and the window's side 7, got 8"),
        ({"pooled": (PooledLevel(4, 1),)}, r"pooled\[0\]\.kernel must be odd and positive, got 4"),
        ({"pooled": (PooledLevel(3, 0),)}, r"pooled\[0\]\.stride must be at least 1, got 0"),
    ],
)
def test_bad_geometry_is_named(settings_, message):
    with pytest.raises(ValueError, match=message):
        FocalGeometry(**settings_)
