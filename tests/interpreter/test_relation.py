"""MRCFA's relation through its three Triton operators: golden answers and compilation."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vss_kernels
from tests.support import golden_operators
from tests.support.triton_machine import DEVICE
from vss_kernels import attend_selected

OPERATORS = ("select_tokens", "masked_affinity", "attend_selected")


@pytest.mark.parametrize("variant", golden_operators.VARIANTS)
def test_golden_affinity(variant):
    with vss_kernels.backend("triton", *OPERATORS):
        golden_operators.check_relation(variant, DEVICE)


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
