"""select_tokens in Triton: the same tokens as eager, with ties and NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.relation_cases import make_tokens
from tests.support.triton_machine import DEVICE, DTYPES
from vss_kernels import select_tokens


def both(target: Tensor, reference: Tensor, kept: int, top: int) -> tuple[Tensor, Tensor]:
    results = []
    for name in ("triton", "eager"):
        with vss_kernels.backend(name, "select_tokens"):
            results.append(select_tokens(target, reference, kept, top))
    return results[0], results[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "kept", "top"),
    [
        ((2, 3, 65, 17, 40), 9, 5),
        ((1, 1, 1, 1, 8), 1, 1),
        ((1, 2, 70, 66, 8), 65, 3),
        ((1, 1, 15, 20, 136), 20, 15),  # all kept, channels past a tile
    ],
    ids=str,
)
def test_the_same_tokens_are_selected(size, kept, top, dtype):
    target, reference = make_tokens(*size, dtype, DEVICE)
    have, want = both(target, reference, kept, top)
    assert torch.equal(have, want)
    assert have.is_contiguous()


def test_of_equal_scores_the_lower_position_wins():
    # Integers, so that sums are exact.
    target = torch.randint(-2, 3, (1, 66, 8), device=DEVICE).float()
    reference = torch.randint(-1, 2, (8,), device=DEVICE).float().expand(1, 2, 20, 8).clone()
    reference[:, 1, 7] = 9 * target[0, 65]  # one token stands out, at the last position
    have, want = both(target, reference, 6, 5)
    assert torch.equal(have, want)
    assert have.tolist() == [[[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 7]]]


def test_signed_zero_scores_are_equal():
    target = torch.zeros(1, 3, 8, device=DEVICE)
    reference = torch.ones(1, 1, 12, 8, device=DEVICE)
    reference[..., :6, :] = -1.0
    have, want = both(target, reference, 4, 2)
    assert torch.equal(have, want)
    assert have.tolist() == [[[0, 1, 2, 3]]]


def test_tokens_with_nan_scores_come_last():
    target, reference = make_tokens(1, 1, 10, 20, 8, device=DEVICE)
    reference[0, 0, [3, 4]] = torch.nan
    reference[0, 0, 9, 2] = torch.inf
    target[..., 2] = target[..., 2].abs()
    have, want = both(target, reference, 17, 5)
    assert torch.equal(have, want)
    assert not {3, 4} & set(have.flatten().tolist())
    assert 9 in have


def test_a_long_target_is_scored_in_parts():
    target, reference = make_tokens(1, 2, 300, 20, 8, device=DEVICE)
    have, want = both(target, reference, 9, 5)
    assert torch.equal(have, want)
    target[0, 290] = torch.nan  # makes every score NaN, though only the last part sees it
    have, want = both(target, reference, 9, 5)
    assert torch.equal(have, want)
    assert have.tolist() == [[list(range(9))] * 2]


def test_more_affinities_than_registers_hold_are_refused():
    target, reference = make_tokens(1, 1, 200, 4, 8, device=DEVICE)
    with (
        vss_kernels.backend("triton"),
        pytest.raises(vss_kernels.BackendError, match="at most 128"),
    ):
        select_tokens(target, reference, 2, 129)
