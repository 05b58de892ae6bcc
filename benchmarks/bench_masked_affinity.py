"""select_tokens, masked_affinity, and MRCFA's chain up to the refined affinity, at B1 sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import vss_kernels
from benchmarks.harness import DEVICE, MODES, implementation_of
from benchmarks.precisions import PRECISIONS, named, products_in
from vss_kernels import aggregate_affinity, masked_affinity, select_tokens
from vss_kernels.aggregate_affinity import AggregationWeights, ConvNormLayer
from vss_kernels.nn import AffinityAggregation

CHANNELS = (128, 320, 512)  # at 1/8, 1/16 and 1/32
REFERENCES = 3
FUSED = ["triton", "triton graph"] if DEVICE == "cuda" else []
# Eager's selection and gather wait for nothing either, so they can be captured too.
EAGER = ["eager", "compiled", *(["eager graph"] if DEVICE == "cuda" else [])]
CHAIN = ["eager", "compiled", "fused", "eager graph", "fused graph"]


class Case(NamedTuple):
    """Clips, and the grid of the image at 1/32."""

    clips: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.height * self.width


CASES = {"480x480 B2": Case(2, 15, 15), "480x864 B1": Case(1, 15, 27)}


def make_tokens(case: Case, scale: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Projected tokens of the target at 1/8, 1/16, 1/32 (scale 0, 1, 2) and of the references.

    Scaled so that affinities are of the order of one.
    """
    channels = CHANNELS[scale]
    positions = case.tokens * 4 ** (2 - scale)
    target = torch.randn(case.clips, positions, channels, device=DEVICE)
    reference = torch.randn(case.clips, REFERENCES, case.tokens, channels, device=DEVICE)
    return (target * channels**-0.25).to(dtype), (reference * channels**-0.25).to(dtype)


def kept(case: Case) -> int:
    return case.tokens // 2


@pytest.mark.parametrize("implementation", [*EAGER, *FUSED])
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


@pytest.mark.parametrize("implementation", [*EAGER, *FUSED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [0, 1, 2], ids=["8th", "16th", "32nd"])
@pytest.mark.parametrize("case", CASES)
def bench_masked_affinity(case, scale, precision, mode, implementation, measure):
    size = CASES[case]
    with products_in(precision) as dtype:
        target, reference = make_tokens(size, scale, dtype)
        index = select_tokens(target, reference, kept(size))
        measure(
            lambda target, reference: masked_affinity(target, reference, index),
            (target, reference),
            operator="masked_affinity",
            case=named(f"{case} {('1/8', '1/16', '1/32')[scale]}", precision),
            mode=mode,
            implementation=implementation,
            flops=2 * index.numel() * target[0].numel(),
        )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device; on a CPU see aggregation's own")
@pytest.mark.parametrize("implementation", CHAIN)
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
    """The chain as a function of tensors, and the tensors: tokens at three scales, then weights."""
    tokens = [tensor for scale in range(3) for tensor in make_tokens(size, scale, dtype)]
    weights = AffinityAggregation("b1").to(DEVICE, dtype).weights()

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
