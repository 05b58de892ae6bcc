"""attend_selected in Triton: answers, gradients, registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.repeats import assert_repeatable
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


def test_permuted_inputs():
    affinity, value, index = make_inputs(SIZES[0])
    inputs = (
        affinity.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        value.mT.contiguous().mT,
        index.mT.contiguous().mT,
    )
    assert_as_accurate_as_eager(attend_selected, inputs, "attend_selected", "triton")


def test_a_position_given_twice_gets_both_gradients():
    affinity, value, index = make_inputs(SIZES[0])
    index[..., 1] = index[..., 4]
    assert_as_accurate_as_eager(
        attend_selected, (affinity, value, index), "attend_selected", "triton"
    )


def test_results_are_repeatable_and_leave_nothing_unwritten():
    affinity, value, index = make_inputs((1, 1, 4, 600, 6, 8))
    leaves = (affinity.requires_grad_(), value.requires_grad_())

    def run():
        with vss_kernels.backend("triton"):
            out = attend_selected(*leaves, index)
        return (out, *torch.autograd.grad(out.square().sum(), leaves))

    assert_repeatable(run)


def test_registration():
    affinity, value, index = make_inputs((1, 2, 3, 5, 6, 8))
    ops = torch.ops.vss_kernels
    leaves = (affinity.requires_grad_(), value.requires_grad_())
    torch.library.opcheck(ops.attend_selected.default, (*leaves, index))
    out, statistics = ops.attend_selected(affinity.detach(), value.detach(), index)
    for needs in ([True, False], [False, True]):
        torch.library.opcheck(
            ops.attend_selected_backward.default,
            (torch.randn_like(out), affinity.detach(), statistics, value.detach(), index, needs),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_a_second_derivative_is_refused():
    affinity, value, index = make_inputs((1, 1, 3, 5, 6, 8))
    affinity.requires_grad_()
    with vss_kernels.backend("triton"):
        out = attend_selected(affinity, value.requires_grad_(), index).square().sum()
        (grad,) = torch.autograd.grad(out, affinity, create_graph=True)
    with pytest.raises(RuntimeError, match=r"attend_selected.*no second derivative"):
        grad.sum().backward()


def test_refuses_float64():
    inputs = make_inputs(SIZES[0], torch.float64)
    with (
        vss_kernels.backend("triton"),
        pytest.raises(vss_kernels.BackendError, match=r"attend_selected.*triton.*float64"),
    ):
        attend_selected(*inputs)
