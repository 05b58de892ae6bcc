"""aggregate_affinity at the sizes of MRCFA: the kept tokens' maps of three reference frames."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import DEVICE, MODES, ON_GPU, on_machine
from tests.support.aggregation_cases import PUBLISHED, aggregate_with, make_maps, make_parameters
from tests.support.precision import assert_as_accurate_as_eager
from vss_kernels import AggregationWeights, ConvNormLayer, aggregate_affinity
from vss_kernels.nn import AffinityAggregation

# name: (maps, rows and columns of the coarse grid)
CASES = on_machine(
    gpu={"480x480, 2 clips": (672, 15, 15), "480x864": (606, 15, 27)},
    cpu={"480x480": (336, 15, 15)},
    dry_run={"480x480, 2 clips": (2, 3, 3), "480x864": (2, 3, 5)},
)
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
GRAPHS = ["eager graph", "native graph"] if ON_GPU else []


@pytest.mark.parametrize("implementation", ["eager", "compiled", "native", *GRAPHS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["b1", "b2"])
def bench_aggregation(variant, case, dtype, mode, implementation, measure):
    torch.manual_seed(0)
    maps = make_maps(*CASES[case], dtype, DEVICE)
    if implementation.startswith("native"):
        # Some biases have no gradient but rounding noise: the check takes all in one vector.
        chains = PUBLISHED[variant]
        assert_as_accurate_as_eager(
            aggregate_with(chains),
            (*maps, make_parameters(chains, dtype, DEVICE)),
            "aggregate_affinity",
            "native",
            exact_device=DEVICE,
        )
    weights = AffinityAggregation(PUBLISHED[variant]).to(DEVICE, dtype).weights()

    def run(coarse, middle, fine, *parameters):
        rest = iter(parameters)
        chains = (
            tuple(ConvNormLayer(*(next(rest) for _ in layer)) for layer in chain)
            for chain in weights
        )
        return aggregate_affinity(coarse, middle, fine, AggregationWeights(*chains))

    measure(
        run,
        (*maps, *(tensor.detach() for chain in weights for layer in chain for tensor in layer)),
        operator="aggregate_affinity",
        case=f"{variant} {case}",
        mode=mode,
        implementation=implementation,
        check=False,
    )
