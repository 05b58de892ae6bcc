"""MRCFA's relation through its three Triton operators: golden answers and compilation."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vss_kernels
from tests.support import golden_io
from tests.support.aggregation_cases import KEEP, PUBLISHED
from tests.support.triton_machine import DEVICE
from vss_kernels import attend_selected
from vss_kernels.nn import RelationAffinity

SCALES = (2, 3, 4)
OPERATORS = ("select_tokens", "masked_affinity", "attend_selected")


@pytest.mark.parametrize(("variant", "layers"), [("b0", 1), ("b1", 2)])
def test_golden_affinity(variant, layers):
    golden = golden_io.load(f"op_affinity_{variant}")
    names = golden_io.relation_names(layers)
    module = RelationAffinity((16, 40, 64), PUBLISHED[variant], KEEP[variant])
    module.load_state_dict(golden_io.rename(golden.group("state"), names))
    module.to(DEVICE)
    inputs = {
        name: tensor.to(DEVICE).requires_grad_() for name, tensor in golden.group("input").items()
    }
    with vss_kernels.backend("triton", *OPERATORS):
        affinity, index = module(
            [inputs[f"target_scale{scale}"].squeeze(1) for scale in SCALES],
            [inputs[f"reference_scale{scale}"] for scale in SCALES],
        )
        affinity.backward(golden.tensors["cotangent.affinity"].mT.to(DEVICE))
    expected_mask = golden.tensors["output.token_mask"]
    mask = torch.zeros_like(expected_mask).scatter_(2, index.cpu(), 1)
    assert torch.equal(mask, expected_mask)
    golden_io.assert_output(affinity.detach().mT.cpu(), golden.tensors["output.affinity"])
    golden_io.assert_gradients(
        {name: tensor.grad.cpu() for name, tensor in inputs.items()}, golden.group("grad.input")
    )
    golden_io.assert_gradients(
        {name: parameter.grad.cpu() for name, parameter in module.named_parameters()},
        golden_io.rename(golden.group("grad.state"), names),
        golden_io.biases_without_effect(module),
    )


def test_compiles_without_graph_breaks_once_for_all_sizes():
    def relate(target, reference, value):
        index = vss_kernels.select_tokens(target, reference, reference.shape[2] // 2, 3)
        return attend_selected(vss_kernels.masked_affinity(target, reference, index), value, index)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(relate, fullgraph=True, backend=counter)
    for positions, tokens in ((9, 6), (15, 10)):
        inputs = [
            torch.randn(size, device=DEVICE, requires_grad=True)
            for size in ((2, positions, 8), (2, 2, tokens, 8), (2, 2, tokens, 5))
        ]
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, tensor.dim() - 2)
        with vss_kernels.backend("triton", *OPERATORS):
            results = [function(*inputs) for function in (compiled, relate)]
            compiled_gradients, gradients = (
                torch.autograd.grad(result.square().sum(), inputs) for result in results
            )
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close(compiled_gradients, gradients)
    assert counter.frame_count == 1
