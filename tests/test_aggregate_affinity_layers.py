"""What aggregate_affinity remembers of layers that it has checked."""

from __future__ import annotations

import gc
from copy import deepcopy

import pytest
import torch
from torch.nn.utils import parametrize

import vss_kernels
from tests.support.aggregation_cases import PUBLISHED, make_maps, make_parameters, unpack
from vss_kernels import AggregationWeights, aggregate_affinity
from vss_kernels._runtime import native
from vss_kernels.aggregate_affinity import layers as remembered
from vss_kernels.nn import AffinityAggregation

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))


@pytest.fixture
def checks(monkeypatch):
    """Counts the checks of layers."""
    calls = []
    check = remembered._check_channels

    def counted(weights):
        calls.append(weights)
        check(weights)

    monkeypatch.setattr(remembered, "_check_channels", counted)
    return calls


def test_the_same_tensors_are_checked_once(checks):
    module = AffinityAggregation(PUBLISHED["b1"])
    for _ in range(3):
        module(*make_maps(2, 2, 3))
    assert len(checks) == 1


def test_another_tensor_is_checked(checks):
    module = AffinityAggregation(PUBLISHED["b1"])
    module(*make_maps(2, 2, 3))
    module.fine[0].norm = torch.nn.GroupNorm(1, 3)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"fine\[0\]\.norm_weight must have shape \(1\)"):
            module(*make_maps(2, 2, 3))
    assert len(checks) == 3


def test_the_same_tensors_in_other_chains_are_checked(checks):
    weights = AffinityAggregation(PUBLISHED["b1"]).weights()
    aggregate_affinity(*make_maps(2, 2, 3), weights)
    first, second = weights.coarse
    moved = weights._replace(coarse=(first,), middle=(second, *weights.middle))
    with pytest.raises(ValueError, match=r"weights\.middle"):
        aggregate_affinity(*make_maps(2, 2, 3), moved)
    assert len(checks) == 2


def test_a_module_gives_its_parameters_as_they_are():
    module = AffinityAggregation(PUBLISHED["b1"])
    weights = module.weights()
    assert module.weights() is weights  # put together once
    copy = deepcopy(module)
    assert copy.weights().fine[0].weight is copy.fine[0].conv.weight
    module.fine[0].conv.weight = torch.nn.Parameter(torch.ones(1, 1, 5, 5))
    assert module.weights().fine[0].weight is module.fine[0].conv.weight
    parametrize.register_parametrization(module.coarse[1].norm, "bias", torch.nn.Softplus())
    for _ in range(2):
        assert torch.equal(module.weights().coarse[1].norm_bias, module.coarse[1].norm.bias)
        with torch.no_grad():
            module.coarse[1].norm.parametrizations.bias.original += 1


def test_tensors_that_are_gone_are_forgotten():
    gc.collect()  # what an error of another test still holds
    before = len(remembered._known)
    weights = unpack(make_parameters(PUBLISHED["b1"]), PUBLISHED["b1"])
    aggregate_affinity(*make_maps(2, 2, 3), weights)
    assert len(remembered._known) == before + 1
    del weights
    gc.collect()
    assert len(remembered._known) == before


def test_nothing_is_kept_of_layers_that_do_not_fit(checks):
    before = len(remembered._known)
    weights = AffinityAggregation(PUBLISHED["b1"]).weights()
    with pytest.raises(ValueError, match=r"weights\.fine must hold at least one layer"):
        aggregate_affinity(*make_maps(2, 2, 3), weights._replace(fine=()))
    with pytest.raises(TypeError, match=r"weights.fine\[0\] must be a ConvNormLayer"):
        aggregate_affinity(*make_maps(2, 2, 3), weights._replace(fine=(None,)))
    with pytest.raises(TypeError):
        aggregate_affinity(*make_maps(2, 2, 3), AggregationWeights(*[None] * 5))
    assert len(remembered._known) == before


@pytest.mark.parametrize("part", ["coarse", "middle_to_fine"])
def test_a_dtype_that_changed_in_place_is_noticed(part):
    module = AffinityAggregation(PUBLISHED["b1"])
    module(*make_maps(2, 2, 3))
    getattr(module, part).half()  # the same parameters with other contents
    with pytest.raises(TypeError, match=rf"weights.{part}\[0\].weight is torch.float16"):
        module(*make_maps(2, 2, 3))
    module.half()
    assert module(*make_maps(2, 2, 3, torch.float16)).dtype == torch.float16


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_native)])
def test_a_shape_that_changed_in_place_is_noticed(backend):
    module = AffinityAggregation(PUBLISHED["b1"])
    convolution = module.coarse[0].conv
    maps = make_maps(2, 2, 3)
    with vss_kernels.backend(backend):
        narrow = module(*maps)
        convolution.weight.data = torch.nn.functional.pad(convolution.weight.data, (1, 1, 1, 1))
        torch.testing.assert_close(module(*maps), narrow)  # the same kernel, framed by zeros
        convolution.weight.data = torch.zeros(1, 1, 4, 4)
        with pytest.raises(ValueError, match="must have an odd kernel, got 4"):
            module(*maps)


@needs_native
def test_a_vector_that_changed_in_place_does_not_lead_out_of_bounds():
    module = AffinityAggregation(PUBLISHED["b1"])
    module(*make_maps(2, 2, 3))
    module.coarse[0].norm.bias.data = torch.zeros(2)
    with pytest.raises(ValueError, match="aggregate_affinity"):
        module(*make_maps(2, 2, 3))
