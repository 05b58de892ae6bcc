"""Argument checks that remember what they checked."""

from __future__ import annotations

import pytest
import torch

import vss_kernels
from vss_kernels._runtime import checks
from vss_kernels._runtime.checks import check_range


@pytest.fixture
def reads(monkeypatch):
    """Counts how often values are read."""
    calls = []
    aminmax = torch.aminmax

    def counted(tensor):
        calls.append(tensor)
        return aminmax(tensor)

    monkeypatch.setattr(checks.torch, "aminmax", counted)
    return calls


def test_the_same_values_are_read_once(reads):
    index = torch.tensor([0, 4])
    for _ in range(3):
        check_range("select", "index", index, 0, 5)
    assert len(reads) == 1


def test_values_that_changed_in_place_are_read_again(reads):
    index = torch.tensor([0, 4])
    check_range("select", "index", index, 0, 5)
    index[1] = 5
    for _ in range(2):
        with pytest.raises(ValueError, match=r"index must lie in \[0, 5\), got values from 0 to 5"):
            check_range("select", "index", index, 0, 5)
    assert len(reads) == 3


def test_chosen_positions_are_not_read_until_they_change(reads):
    target, reference = torch.randn(1, 3, 8), torch.randn(1, 2, 5, 8)
    index = vss_kernels.select_tokens(target, reference, num_selected=2, top=2)
    vss_kernels.masked_affinity(target, reference, index)
    assert not reads
    index[0, 0, 0] = 5
    with pytest.raises(ValueError, match=r"index must lie in \[0, 5\)"):
        vss_kernels.masked_affinity(target, reference, index)


def test_other_bounds_are_checked_anew():
    index = torch.tensor([0, 4])
    check_range("select", "index", index, 0, 5)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 4\)"):
        check_range("select", "index", index, 0, 4)
    with pytest.raises(ValueError, match=r"index must lie in \[1, 5\)"):
        check_range("select", "index", index, 1, 5)


def test_another_tensor_of_the_same_address_is_read():
    for value in (0, 5):
        index = torch.tensor([value])
        if value == 5:
            with pytest.raises(ValueError, match="got values from 5 to 5"):
                check_range("select", "index", index, 0, 5)
        else:
            check_range("select", "index", index, 0, 5)
        del index


def test_an_inference_tensor_has_no_version_and_is_always_read(reads):
    with torch.inference_mode():
        index = torch.tensor([0, 4])
        check_range("select", "index", index, 0, 5)
        index[1] = 5
        with pytest.raises(ValueError, match="got values from 0 to 5"):
            check_range("select", "index", index, 0, 5)
    assert len(reads) == 2
