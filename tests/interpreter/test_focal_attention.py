"""focal_attention in Triton: answers, gradients, registration."""

from __future__ import annotations

import pytest
import torch

import vss_kernels
from tests.support.focal_cases import SMALL, flat_inputs, token_inputs
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.triton_machine import DEVICE, DTYPES
from vss_kernels import FocalGeometry, PooledLevel
from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.tables import LONGEST_ITEM, inverse_tables

# geometry, grid of windows, clips, heads, channels of a head
CASES = {
    "published": (FocalGeometry(), (1, 2), 1, 1, 32),
    "many windows": (SMALL, (3, 5), 1, 1, 8),
    "several heads and clips": (SMALL, (2, 2), 2, 2, 4),
    "odd and wide heads": (SMALL, (1, 2), 1, 2, 97),
    "several tiles of queries": (FocalGeometry(9, 0, (PooledLevel(1, 1),)), (1, 1), 1, 1, 16),
    "unseen cells": (FocalGeometry(3, 1, (PooledLevel(1, 3),)), (2, 2), 1, 1, 16),
    "no ring, no pooled maps": (FocalGeometry(2, 0, ()), (1, 2), 1, 1, 16),
    "empty batch": (SMALL, (1, 2), 0, 2, 8),
}


@pytest.fixture(autouse=True)
def _triton():
    with vss_kernels.backend("triton", "focal_attention"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_is_as_accurate_as_eager(case, dtype):
    run, inputs = flat_inputs(*CASES[case], dtype, device=DEVICE)
    assert_as_accurate_as_eager(run, inputs, "focal_attention", "triton")


def test_some_tiles_are_shared_by_several_items():
    # So that the cases above reach the sum of partial results.
    geometry, grid, *_ = CASES["many windows"]
    inverse = inverse_tables.get(geometry, grid, torch.device(DEVICE))
    assert inverse.num_parts > 0
    assert max((inverse.items[:, 2] - inverse.items[:, 1]).tolist()) == LONGEST_ITEM


def test_logits_far_apart():
    # Logits of a hundred, in the kernels times log2(e): exp() of these is infinite in float32.
    run, (query, *rest) = flat_inputs(SMALL, (2, 2), 1, 2, 8, device=DEVICE)
    inputs = (query * 30, *rest)
    assert_as_accurate_as_eager(run, inputs, "focal_attention", "triton")


@pytest.mark.parametrize("seed", range(6))
def test_values_under_logits_far_apart(seed):
    # Where one key has all the weight, eager's weight of it is exactly one, and ours must be, too:
    # computed again from other roundings of logits of a thousand it would be wrong by 1e-5.
    torch.manual_seed(seed)
    run, (query, key, value, *rest) = flat_inputs(SMALL, (2, 2), 1, 2, 8, device=DEVICE)

    def attend(value):
        others = (tensor.to(value) for tensor in rest)
        return run(query.to(value) * 300, key.to(value), value, *others)

    assert_as_accurate_as_eager(attend, (value,), "focal_attention", "triton")


def test_slots_without_weight():
    # Minus infinity in the bias takes slots out, also both slots of a token that has two.
    query, key_value, bias = token_inputs(SMALL, (3, 3), heads=1, batch=1, device=DEVICE)
    bias[:, :, 10:20] = -torch.inf

    def run(query, key_value):
        return attend_tokens(query, key_value, bias.to(query), SMALL)

    assert_as_accurate_as_eager(run, (query, key_value), "focal_attention", "triton")


def test_a_buffer_with_gaps():
    query, key_value, bias = token_inputs(SMALL, (1, 2), batch=1, device=DEVICE)
    spread = torch.stack([key_value, key_value + 1], dim=3)[:, :, :, 0]  # strides of a larger one
    assert not spread.is_contiguous()
    assert_as_accurate_as_eager(
        lambda *tensors: attend_tokens(*tensors, SMALL),
        (query, spread, bias),
        "focal_attention",
        "triton",
    )


def test_too_many_channels_are_refused():
    run, inputs = flat_inputs(SMALL, (1, 1), 1, 1, 129, device=DEVICE)
    with pytest.raises(vss_kernels.BackendError, match="at most 128 channels a head, not 129"):
        run(*inputs)


@pytest.mark.gpu
def test_an_unknown_size_inside_a_cuda_graph_is_named():
    geometry = FocalGeometry(3, 1, (PooledLevel(3, 5),))
    inputs = token_inputs(geometry, (1, 5), heads=1, batch=1, device=DEVICE)
    with (
        pytest.raises(RuntimeError, match="run the same size once before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        attend_tokens(*inputs, geometry)
