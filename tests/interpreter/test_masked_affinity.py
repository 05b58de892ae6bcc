"""masked_affinity in Triton: answers, gradients, registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.relation_cases import make_index, make_tokens
from tests.support.triton_machine import DEVICE, DTYPES
from vss_kernels import masked_affinity

# (clips, references, target tokens, reference tokens, kept, channels); tiles are 16, 32 and 64 wide
SIZES = [
    (2, 3, 65, 17, 9, 40),
    (1, 1, 1, 1, 1, 8),
    (1, 2, 70, 66, 65, 8),  # more kept tokens than one tile holds
    (1, 1, 15, 20, 20, 136),  # all kept, channels past a tile
    (0, 2, 5, 6, 3, 8),
    (1, 2, 5, 6, 0, 8),
    (1, 2, 0, 6, 2, 8),
]


def make_inputs(size, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    clips, references, positions, tokens, kept, channels = size
    target, reference = make_tokens(clips, references, positions, tokens, channels, dtype, DEVICE)
    return target, reference, make_index(clips, references, tokens, kept, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_as_accurate_as_eager(size, dtype):
    assert_as_accurate_as_eager(
        masked_affinity, make_inputs(size, dtype), "masked_affinity", "triton"
    )


def test_a_position_given_twice_gets_both_gradients():
    target, reference, index = make_inputs(SIZES[0])
    index[..., 1] = index[..., 4]
    index[..., 8] = index[..., 4]
    assert_as_accurate_as_eager(
        masked_affinity, (target, reference, index), "masked_affinity", "triton"
    )


def test_long_sums_are_split_and_still_bitwise_repeatable():
    target, reference, index = make_inputs((1, 1, 600, 5, 4, 8))
    gradients = []
    for _ in range(2):
        leaf = reference.clone().requires_grad_()
        with vss_kernels.backend("triton"):
            masked_affinity(target, leaf, index).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    inputs = (target, reference, index)
    assert_as_accurate_as_eager(masked_affinity, inputs, "masked_affinity", "triton")


def test_channels_that_no_tile_divides_are_refused():
    target, reference, index = make_inputs((1, 1, 5, 6, 3, 12))
    with (
        vss_kernels.backend("triton"),
        pytest.raises(vss_kernels.BackendError, match=r"masked_affinity.*triton.*multiples of 8"),
    ):
        masked_affinity(target, reference, index)


def test_gradients_of_one_input_alone():
    target, reference, index = make_inputs(SIZES[0])
    with vss_kernels.backend("triton"):
        masked_affinity(target.requires_grad_(), reference, index).sum().backward()
        masked_affinity(target.detach(), reference.requires_grad_(), index).sum().backward()
    kept = reference.detach().gather(2, index[..., None].expand(-1, -1, -1, 40))
    torch.testing.assert_close(target.grad, kept.sum((1, 2))[:, None].expand_as(target))
    summed = target.detach().sum(1)[:, None, None].expand_as(kept)
    expected = torch.zeros_like(reference).scatter(2, index[..., None].expand_as(kept), summed)
    torch.testing.assert_close(reference.grad, expected)
