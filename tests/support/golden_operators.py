"""Modules around the operators of MRCFA against their golden answers, on any backend or device."""

from __future__ import annotations

import torch

from tests.support import golden_io
from tests.support.aggregation_cases import KEEP, PUBLISHED
from vss_kernels.nn import AffinityAggregation, RelationAffinity

VARIANTS = {"b0": 1, "b1": 2}
"""Layers in each chain of the variants that have golden answers."""

_SCALES = (2, 3, 4)


def check_aggregation(variant: str) -> None:
    """Asserts the refined maps and all gradients of AffinityAggregation."""
    golden = golden_io.load(f"op_aggregation_{variant}")
    names = golden_io.aggregation_names(VARIANTS[variant])
    module = AffinityAggregation(PUBLISHED[variant])
    module.load_state_dict(golden_io.rename(golden.group("state"), names))
    inputs = {
        name: tensor.squeeze(1).requires_grad_() for name, tensor in golden.group("input").items()
    }
    refined = module(inputs["affinity_1_32"], inputs["affinity_1_16"], inputs["affinity_1_8"])
    golden_io.assert_output(refined, golden.tensors["output.refined"].squeeze(1))
    refined.backward(golden.tensors["cotangent.refined"].squeeze(1))
    golden_io.assert_gradients(
        {name: tensor.grad for name, tensor in inputs.items()},
        {name: tensor.squeeze(1) for name, tensor in golden.group("grad.input").items()},
    )
    golden_io.assert_gradients(
        {name: parameter.grad for name, parameter in module.named_parameters()},
        golden_io.rename(golden.group("grad.state"), names),
        golden_io.biases_without_effect(module),
    )


def check_relation(variant: str, device: str = "cpu") -> None:
    """Asserts the kept tokens, affinities and all gradients of RelationAffinity."""
    golden = golden_io.load(f"op_affinity_{variant}")
    names = golden_io.relation_names(VARIANTS[variant])
    module = RelationAffinity((16, 40, 64), PUBLISHED[variant], KEEP[variant])
    assert module.top == int(golden.metadata["topk"])
    assert module.keep == float(golden.metadata["num_select_ratio"])
    module.load_state_dict(golden_io.rename(golden.group("state"), names))
    module.to(device)
    inputs = {
        name: tensor.to(device).requires_grad_() for name, tensor in golden.group("input").items()
    }
    affinity, index = module(
        [inputs[f"target_scale{scale}"].squeeze(1) for scale in _SCALES],
        [inputs[f"reference_scale{scale}"] for scale in _SCALES],
    )
    expected_mask = golden.tensors["output.token_mask"]
    mask = torch.zeros_like(expected_mask).scatter_(2, index.cpu(), 1)
    assert torch.equal(mask, expected_mask)
    golden_io.assert_output(affinity.mT.cpu(), golden.tensors["output.affinity"])
    affinity.backward(golden.tensors["cotangent.affinity"].mT.to(device))
    golden_io.assert_gradients(
        {name: tensor.grad.cpu() for name, tensor in inputs.items()}, golden.group("grad.input")
    )
    golden_io.assert_gradients(
        {name: parameter.grad.cpu() for name, parameter in module.named_parameters()},
        golden_io.rename(golden.group("grad.state"), names),
        golden_io.biases_without_effect(module),
    )
