"""MRCFA's relation up to the refined affinity, operator after operator, at B1 sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import vss_kernels
from benchmarks.harness import DEVICE, MODES, ON_GPU
from benchmarks.precisions import PRECISIONS, named, products_in
from benchmarks.relation_sizes import CASES, Case, kept, make_tokens
from tests.support.aggregation_cases import PUBLISHED
from vss_kernels import aggregate_affinity, masked_affinity, select_tokens
from vss_kernels.aggregate_affinity import AggregationWeights, ConvNormLayer
from vss_kernels.nn import AffinityAggregation

IMPLEMENTATIONS = ["eager", "compiled", "fused", "eager graph", "fused graph"]


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device; on a CPU see bench_aggregate_affinity")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def bench_relation_chain(case, precision, mode, implementation, measure):
    """select_tokens, three masked_affinity and aggregate_affinity, one after the other."""
    with products_in(precision) as dtype:
        chain, inputs = make_chain(CASES[case], dtype)
        check_chain(chain, inputs)
        measure(
            chain,
            inputs,
            operator="select_tokens+masked_affinity+aggregate_affinity",
            case=named(case, precision),
            mode=mode,
            implementation=implementation,
            check=False,
        )


def make_chain(size: Case, dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Returns the chain as a function, and its tensors: tokens at three scales, then weights."""
    tokens = [tensor for scale in range(3) for tensor in make_tokens(size, scale, dtype)]
    weights = AffinityAggregation(PUBLISHED["b1"]).to(DEVICE, dtype).weights()

    def chain(*tensors: Tensor) -> Tensor:
        target, reference = tensors[0:6:2], tensors[1:6:2]
        index = select_tokens(target[2], reference[2], kept(size))
        maps = [
            masked_affinity(target[scale], reference[scale], index)
            .flatten(0, 2)
            .unflatten(1, (size.height * side, size.width * side))
            for scale, side in enumerate((4, 2, 1))
        ]
        remaining = iter(tensors[6:])
        rebuilt = AggregationWeights(
            *(
                tuple(ConvNormLayer(*(next(remaining) for _ in layer)) for layer in layers)
                for layers in weights
            )
        )
        return aggregate_affinity(maps[2], maps[1], maps[0], rebuilt)

    parameters = [part.detach() for layers in weights for layer in layers for part in layer]
    return chain, [*tokens, *parameters]


def check_chain(chain: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Asserts that the chosen operators' result is on average as near to float64 as eager's.

    Which tokens are kept may differ where scores all but tie, so single values say nothing.
    """
    with vss_kernels.backend("eager"):
        expected = chain(*(tensor.double() for tensor in inputs))
        allowed = 2 * (chain(*inputs).double() - expected).abs().mean()
    assert (chain(*inputs).double() - expected).abs().mean() <= allowed + 1e-6
