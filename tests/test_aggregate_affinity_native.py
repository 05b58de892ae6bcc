"""aggregate_affinity's native kernels: golden answers, accuracy, layouts, determinism."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support import golden_io
from tests.support.aggregation_cases import (
    CHAINS,
    PUBLISHED,
    aggregate_with,
    make_maps,
    make_parameters,
    numbers,
)
from tests.support.layouts import stored_in_order
from tests.support.precision import assert_as_accurate_as_eager, error, outputs_and_gradients
from vss_kernels._runtime import native
from vss_kernels.nn import AffinityAggregation

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# maps, rows and columns of the coarse grid
SIZES = [(3, 4, 5), (2, 1, 9), (1, 3, 17), (2, 5, 2), (0, 2, 3)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("chains", CHAINS)
def test_as_accurate_as_eager(chains, size, dtype, device):
    inputs = (*make_maps(*size, dtype, device), make_parameters(CHAINS[chains], dtype, device))
    assert_as_accurate_as_eager(
        aggregate_with(CHAINS[chains]), inputs, "aggregate_affinity", "native"
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chains", ["b0", "b1"])
def test_a_single_coarse_position(chains, device):
    # Its norm maps everything to zero, so only rounding noise can come back through it.
    coarse, middle, fine = make_maps(2, 1, 1, device=device)
    parameters = make_parameters(CHAINS[chains], device=device)
    run = aggregate_with(CHAINS[chains])
    assert_as_accurate_as_eager(
        lambda *rest: run(coarse.to(rest[0]), *rest),
        (middle, fine, parameters),
        "aggregate_affinity",
        "native",
    )
    with vss_kernels.backend("native", "aggregate_affinity"):
        refined = run(coarse.requires_grad_(), middle, fine, parameters)
    (gradient,) = torch.autograd.grad(refined.sum(), coarse)
    assert gradient.abs().max() <= 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [*SIZES, (2, 1, 16), (2, 5, 8), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("chains", ["b0", "b1"])
def test_published_chains_agree_with_all_others(chains, size, device):
    # A GPU has kernels of its own for the published chains. A kernel that is framed by zeros
    # computes the same, and makes the chain one that is not published.
    coarse, *others = PUBLISHED[chains]
    (side, *channels), *rest = coarse
    framed = aggregate_with(([(side + 2, *channels), *rest], *others))

    def run_framed(coarse, middle, fine, parameters):
        first, rest = parameters[: side**2].reshape(side, side), parameters[side**2 :]
        return framed(
            coarse,
            middle,
            fine,
            torch.cat([torch.nn.functional.pad(first, [1] * 4).flatten(), rest]),
        )

    torch.manual_seed(0)
    maps = make_maps(*size, device=device)
    inputs = (*maps, make_parameters(PUBLISHED[chains], device=device))
    if size[1:] == (1, 1):  # one coarse position: only rounding noise comes back through its norm
        inputs, coarse_map = inputs[1:], inputs[0]
        functions = [
            lambda *rest, run=run: run(coarse_map, *rest)
            for run in (aggregate_with(PUBLISHED[chains]), run_framed)
        ]
    else:
        functions = [aggregate_with(PUBLISHED[chains]), run_framed]
    with vss_kernels.backend("native", "aggregate_affinity"):
        published, others = (outputs_and_gradients(function, inputs) for function in functions)
    for have, want in zip(published, others, strict=True):
        assert error(have, want.double().cpu()) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chains", ["b0", "b1"])
def test_maps_that_begin_anywhere(chains, device):
    # Kernels of a GPU load several elements at once, which must be aligned.
    maps = make_maps(2, 3, 4, device=device)
    parameters = [make_parameters(PUBLISHED[chains], device=device)]
    shifted = []
    for scale in maps:
        memory = scale.new_empty(scale.numel() + 1)
        shifted.append(memory[1:].view(scale.shape).copy_(scale))
    grad = torch.randn_like(maps[2])
    layers = numbers(PUBLISHED[chains])
    operators = torch.ops.vss_kernels

    def run(scales):
        refined, statistics, packed = operators.aggregate_affinity(*scales, parameters, layers)
        gradients = operators.aggregate_affinity_backward(
            grad, *scales, packed, statistics, layers, [True] * 4
        )
        return refined, *gradients

    for have, want in zip(run(shifted), run(maps), strict=True):
        assert torch.equal(have, want)


@pytest.mark.gpu
@pytest.mark.parametrize("chains", ["b0", "b1"])
def test_maps_that_do_not_fit_shared_memory(chains):
    inputs = (*make_maps(3, 68, 60, device="cuda"), make_parameters(CHAINS[chains], device="cuda"))
    assert_as_accurate_as_eager(
        aggregate_with(CHAINS[chains]), inputs, "aggregate_affinity", "native"
    )


# The same examples every time: once in some hundred, rounding puts a value on the other side of a
# ReLU's corner, in eager and fused operators alike, and its gradient with it.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 12)),
    chains=st.sampled_from(sorted(CHAINS)),
    orders=st.tuples(*[st.permutations(range(3))] * 3),
)
def test_odd_sizes_and_strides(size, chains, orders):
    torch.manual_seed(0)
    maps = make_maps(*size)
    parameters = make_parameters(CHAINS[chains])
    run = aggregate_with(CHAINS[chains])
    strided = [stored_in_order(scale, order) for scale, order in zip(maps, orders, strict=True)]
    with vss_kernels.backend("native", "aggregate_affinity"):
        assert torch.equal(run(*strided, parameters), run(*maps, parameters))
    assert_as_accurate_as_eager(run, (*strided, parameters), "aggregate_affinity", "native")


def test_statistics_far_from_zero():
    # The variance is a hundred millionth of the squared mean: one pass would lose it.
    chains = PUBLISHED["b0"]
    maps = tuple(scale + 1e4 for scale in make_maps(2, 4, 5))
    parameters = make_parameters(chains)
    inputs = (*maps, parameters)
    assert_as_accurate_as_eager(aggregate_with(chains), inputs, "aggregate_affinity", "native")


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_map(device):
    chains = PUBLISHED["b1"]
    coarse, middle, fine = make_maps(4, 2, 3, device=device)
    fine[1, 3, 4] = math.nan
    with vss_kernels.backend("native", "aggregate_affinity"):
        refined = aggregate_with(chains)(
            coarse, middle, fine, make_parameters(chains, device=device)
        )
    assert refined[1].isnan().all()
    assert refined[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chains", CHAINS)
def test_gradients_do_not_depend_on_which_others_are_wanted(chains, device):
    maps = make_maps(2, 2, 3, device=device)
    parameters = [make_parameters(CHAINS[chains], device=device)]
    operators = torch.ops.vss_kernels
    layers = numbers(CHAINS[chains])
    refined, statistics, packed = operators.aggregate_affinity(*maps, parameters, layers)
    grad = torch.randn_like(refined)
    arguments = (grad, *maps, packed, statistics, layers)
    everything = operators.aggregate_affinity_backward(*arguments, [True] * 4)
    for choice in range(16):
        needs = [bool(choice >> position & 1) for position in range(4)]
        some = operators.aggregate_affinity_backward(*arguments, needs)
        for needed, want, have in zip(needs, everything, some, strict=True):
            assert not needed or torch.equal(want, have)


def test_biases_without_effect_get_next_to_no_gradient():
    # A norm over one channel takes the convolution's bias out again.
    module = AffinityAggregation(PUBLISHED["b0"])
    maps = make_maps(6, 5, 6)
    with vss_kernels.backend("native", "aggregate_affinity"):
        module(*maps).square().sum().backward()
    for name in golden_io.biases_without_effect(module):
        weight = module.get_parameter(name.replace(".bias", ".weight"))
        bias = module.get_parameter(name)
        assert bias.grad is not None
        assert weight.grad is not None
        assert bias.grad.abs().max() <= 1e-5 * weight.grad.abs().max()


def test_the_longest_program_fits():
    chains = ([(1, 1, 1)] * 6, [(1, 1, 1)] * 6, [(1, 1, 1)] * 4, [(1, 1, 1)] * 4, [(1, 1, 1)] * 4)
    inputs = (*make_maps(2, 2, 3), torch.rand(4 * 24))
    assert_as_accurate_as_eager(aggregate_with(chains), inputs, "aggregate_affinity", "native")


@pytest.mark.parametrize(
    ("chains", "reason"),
    [
        (([(9, 1, 1)], *PUBLISHED["b0"][1:]), "not of 9"),
        (([(1, 1, 5), (1, 5, 1)], *PUBLISHED["b0"][1:]), "not from 1 to 5"),
        (([(1, 1, 1)] * 21, *PUBLISHED["b0"][1:]), "up to 24 layers, not 25"),
    ],
)
def test_what_native_refuses_eager_takes(chains, reason):
    inputs = (*make_maps(2, 2, 3), make_parameters(chains))
    with (
        vss_kernels.backend("native", "aggregate_affinity"),
        pytest.raises(vss_kernels.BackendError, match=reason),
    ):
        aggregate_with(chains)(*inputs)
    assert aggregate_with(chains)(*inputs).shape == (2, 8, 12)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"middle": torch.zeros(2, 3, 6)}, ValueError),
        ({"fine": torch.zeros(2, 8, 12).half()}, TypeError),
        ({"parameters": [torch.zeros(7)]}, ValueError),
        ({"parameters": []}, ValueError),
        ({"parameters": [torch.zeros(9), torch.zeros(1).half()]}, TypeError),
        ({"parameters": [torch.zeros(20), torch.zeros(90)]}, ValueError),  # no four a layer
        ({"parameters": [torch.zeros(11), *[torch.zeros(1)] * 19]}, ValueError),
        ({"layers": [1, 1, 1]}, ValueError),  # no five chain lengths
        ({"layers": [1] * 5 + [2, 1, 1] * 5}, ValueError),  # an even kernel
        ({"layers": [1] * 5 + [1, 2, 1] * 5}, ValueError),  # channels that nobody makes
    ],
)
def test_a_direct_call_does_not_read_out_of_bounds(change, error):
    coarse, middle, fine = make_maps(2, 2, 3)
    arguments = {
        "coarse": coarse,
        "middle": middle,
        "fine": fine,
        "parameters": [make_parameters(PUBLISHED["b0"])],
        "layers": numbers(PUBLISHED["b0"]),
    }
    with pytest.raises(error, match="aggregate_affinity"):
        torch.ops.vss_kernels.aggregate_affinity(**{**arguments, **change})
