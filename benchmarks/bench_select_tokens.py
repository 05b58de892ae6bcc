"""select_tokens at the sizes of an MRCFA-B1 head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.harness import ON_GPU, implementation_of
from benchmarks.relation_sizes import CASES, kept, make_tokens
from vss_kernels import select_tokens

FUSED = ["eager graph", "triton", "triton graph"] if ON_GPU else ["native"]


@pytest.mark.parametrize("implementation", ["eager", "compiled", *FUSED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def bench_select_tokens(case, dtype, implementation, measure):
    size = CASES[case]
    inputs = make_tokens(size, 2, dtype)

    def select(target: Tensor, reference: Tensor) -> Tensor:
        return select_tokens(target, reference, kept(size))

    with implementation_of(("select_tokens",), implementation):
        assert_the_same_selection(inputs, kept(size))
    measure(
        select,
        inputs,
        operator="select_tokens",
        case=case,
        mode="forward",
        implementation=implementation,
        check=False,
        flops=2 * inputs[1].numel() * inputs[0].shape[1],
    )


def assert_the_same_selection(inputs: tuple[Tensor, Tensor], num_selected: int) -> None:
    """Asserts that the tokens chosen are those of float64, but for scores that are all but equal.

    A token may be swapped for another whose float64 score is nearer to it than rounding.
    """
    target, reference = (tensor.double() for tensor in inputs)
    affinity = reference.flatten(1, 2) @ target.mT
    scores = affinity.topk(5, -1).values.sum(-1).view(reference.shape[:3])
    index = select_tokens(*inputs, num_selected)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(2, index, True)
    worst = scores.masked_fill(~chosen, torch.inf).amin(-1)
    best_left = scores.masked_fill(chosen, -torch.inf).amax(-1)
    assert (worst >= best_left - 1e-4 * scores.abs().amax()).all()
