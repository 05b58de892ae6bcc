"""aggregate_affinity as a registered operator: opcheck, compilation, autocast and errors."""

from __future__ import annotations

import pytest
import torch

import vss_kernels
from tests.support.aggregation_cases import (
    PUBLISHED,
    aggregate_with,
    make_maps,
    make_parameters,
    numbers,
)
from tests.support.repeats import assert_replays
from vss_kernels._runtime import native
from vss_kernels.nn import AffinityAggregation

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needs", [(1, 1, 1, 1), (0, 0, 0, 1), (0, 1, 0, 0), (1, 0, 0, 0)], ids=str)
def test_registration(needs, device):
    chains = PUBLISHED["b1"]
    inputs = (*make_maps(2, 2, 3, device=device), make_parameters(chains, device=device))
    wanted = [
        tensor.clone().requires_grad_(bool(needed))
        for tensor, needed in zip(inputs, needs, strict=True)
    ]
    operators = torch.ops.vss_kernels
    torch.library.opcheck(operators.aggregate_affinity.default, (*wanted, numbers(chains)))
    refined, statistics = operators.aggregate_affinity(*inputs, numbers(chains))
    torch.library.opcheck(
        operators.aggregate_affinity_backward.default,
        (
            torch.randn_like(refined),
            *inputs,
            statistics,
            numbers(chains),
            [bool(needed) for needed in needs],
        ),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compiles_without_graph_breaks_at_several_sizes():
    module = AffinityAggregation(PUBLISHED["b1"])
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with vss_kernels.backend("native", "aggregate_affinity"):
        for size in ((2, 3, 4), (5, 2, 6)):
            maps = make_maps(*size)
            module.zero_grad()
            refined = compiled(*maps)
            assert torch.equal(refined, module(*maps))
            refined.sum().backward()
            assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_autocast_keeps_gradients_in_float32():
    module = AffinityAggregation(PUBLISHED["b1"])
    with (
        vss_kernels.backend("native", "aggregate_affinity"),
        torch.autocast("cpu", torch.bfloat16),
    ):
        refined = module(*make_maps(2, 2, 3))
    refined.sum().backward()
    assert refined.dtype == torch.bfloat16
    assert module.fine[0].conv.weight.grad.dtype == torch.float32


def test_a_second_derivative_is_refused():
    chains = PUBLISHED["b0"]
    maps = make_maps(2, 2, 3)
    leaf = make_parameters(chains).requires_grad_()
    with vss_kernels.backend("native", "aggregate_affinity"):
        refined = aggregate_with(chains)(*maps, leaf)
    (grad,) = torch.autograd.grad(refined.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"aggregate_affinity.*no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("chains", "dtype", "reason"),
    [
        (PUBLISHED["b0"], torch.float64, "float64"),
        (([(9, 1, 1)], *PUBLISHED["b0"][1:]), torch.float32, "not of 9"),
        (([(1, 1, 5), (1, 5, 1)], *PUBLISHED["b0"][1:]), torch.float32, "not from 1 to 5"),
        (([(1, 1, 1)] * 21, *PUBLISHED["b0"][1:]), torch.float32, "up to 24 layers, not 25"),
    ],
)
def test_what_native_refuses_eager_takes(chains, dtype, reason):
    inputs = (*make_maps(2, 2, 3, dtype), make_parameters(chains, dtype))
    with (
        vss_kernels.backend("native", "aggregate_affinity"),
        pytest.raises(vss_kernels.BackendError, match=reason),
    ):
        aggregate_with(chains)(*inputs)
    assert aggregate_with(chains)(*inputs).shape == (2, 8, 12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"middle": torch.zeros(2, 3, 6)}, ValueError, "middle does not fit coarse"),
        ({"fine": torch.zeros(2, 8, 12).half()}, TypeError, "fine is Half but coarse is Float"),
        ({"parameters": torch.zeros(7)}, ValueError, "parameters must hold .* values, got 7"),
        ({"layers": [1, 1, 1]}, ValueError, "five chain lengths"),
        ({"layers": [1] * 5 + [2, 1, 1] * 5}, ValueError, "a kernel must be 1, 3, 5 or 7, got 2"),
        ({"layers": [1] * 5 + [1, 2, 1] * 5}, ValueError, "takes 2 channels but gets 1"),
    ],
)
def test_the_operator_itself_checks(change, error, message):
    coarse, middle, fine = make_maps(2, 2, 3)
    arguments = {
        "coarse": coarse,
        "middle": middle,
        "fine": fine,
        "parameters": make_parameters(PUBLISHED["b0"]),
        "layers": numbers(PUBLISHED["b0"]),
    }
    with pytest.raises(error, match=message):
        torch.ops.vss_kernels.aggregate_affinity(**{**arguments, **change})


@pytest.mark.gpu
def test_runs_inside_a_cuda_graph():
    module = AffinityAggregation(PUBLISHED["b1"]).cuda()
    maps = [scale.requires_grad_() for scale in make_maps(4, 3, 4, device="cuda")]

    def run():
        refined = module(*maps)
        return (refined, *torch.autograd.grad(refined.sum(), [*maps, *module.parameters()]))

    assert_replays(run)
