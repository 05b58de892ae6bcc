"""attend_selected in Triton: answers, gradients, registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.precision import assert_as_accurate_as_eager
from tests.support.triton_machine import DEVICE, DTYPES
from vss_kernels import attend_selected

# (clips, references, kept, target tokens, reference tokens, channels); tiles are 16 to 64 wide
SIZES = [
    (2, 2, 9, 65, 17, 40),
    (1, 1, 1, 1, 1, 1),
    (1, 2, 65, 7, 66, 5),  # several tiles of kept tokens
    (1, 1, 20, 15, 20, 67),  # all kept, channels past a tile
    (0, 2, 3, 5, 6, 8),
    (1, 2, 0, 5, 6, 8),
    (1, 2, 2, 0, 6, 8),
]


def make_inputs(size, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    clips, references, kept, positions, tokens, channels = size
    affinity = 3 * torch.randn(clips, references, kept, positions, device=DEVICE)
    value = torch.randn(clips, references, tokens, channels, device=DEVICE)
    index = torch.rand(clips, references, tokens, device=DEVICE).argsort(-1)[..., :kept]
    return affinity.to(dtype), value.to(dtype), index


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_accurate_as_eager(size, dtype):
    inputs = make_inputs(size, dtype)
    assert_as_accurate_as_eager(attend_selected, inputs, "attend_selected", "triton")


def test_large_affinities_do_not_overflow():
    affinity, value, index = make_inputs(SIZES[2])
    affinity = affinity * 100  # exp() of these is infinite in float32
    affinity[0, 0, :40] = -torch.inf  # a whole tile that weighs nothing
    assert_as_accurate_as_eager(
        lambda a, v: attend_selected(a, v, index), (affinity, value), "attend_selected", "triton"
    )


def test_a_position_given_twice_gets_both_gradients():
    affinity, value, index = make_inputs(SIZES[0])
    index[..., 1] = index[..., 4]
    assert_as_accurate_as_eager(
        attend_selected, (affinity, value, index), "attend_selected", "triton"
    )
