"""aggregate_affinity: golden answers, definition, gradients, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vss_kernels
from tests.support import golden_operators
from tests.support.aggregation_cases import PUBLISHED
from tests.support.definitions import resize
from tests.support.layouts import stored_in_order
from vss_kernels import AggregationWeights, ConvNormLayer, aggregate_affinity
from vss_kernels._runtime import native
from vss_kernels.nn import AffinityAggregation

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))


@pytest.fixture(autouse=True)
def _eager():
    with vss_kernels.backend("eager"):
        yield


def make_weights(variant="b1", dtype=torch.float32):
    """Weights as far from their initial values as trained ones."""
    module = AffinityAggregation(PUBLISHED[variant])
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.to(dtype).weights()


def make_maps(count, height, width, dtype=torch.float32):
    return tuple(torch.randn(count, height * k, width * k).to(dtype) for k in (1, 2, 4))


def refine_by_hand(maps, layers):
    for layer in layers:
        weight, bias, scale, shift = (tensor.double() for tensor in layer)
        outgoing, incoming, kernel, _ = weight.shape
        count, _, height, width = maps.shape
        out = torch.zeros(count, outgoing, height, width, dtype=torch.float64)
        for y in range(height):
            for x in range(width):
                out[:, :, y, x] = bias
                for i in range(kernel):
                    for j in range(kernel):
                        row, column = y + i - kernel // 2, x + j - kernel // 2
                        if 0 <= row < height and 0 <= column < width:
                            for c in range(incoming):
                                out[:, :, y, x] += (
                                    weight[:, c, i, j] * maps[:, c, row, column, None]
                                )
        for m in range(count):
            centred = out[m] - out[m].mean()
            normed = centred / (centred.square().mean() + 1e-5).sqrt()
            out[m] = normed * scale[:, None, None] + shift[:, None, None]
        maps = out.clamp(min=0)
    return maps


def aggregate_by_hand(coarse, middle, fine, weights):
    current = refine_by_hand(coarse[:, None].double(), weights.coarse)
    middle = refine_by_hand(middle[:, None].double(), weights.middle)
    current = resize(current, middle.shape[-2:], align_corners=True) + middle
    current = refine_by_hand(current, weights.coarse_to_middle)
    fine = refine_by_hand(fine[:, None].double(), weights.fine)
    current = resize(current, fine.shape[-2:], align_corners=True) + fine
    return refine_by_hand(current, weights.middle_to_fine)[:, 0]


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("variant", golden_operators.VARIANTS)
def test_golden(variant, backend):
    with vss_kernels.backend(backend, "aggregate_affinity"):
        golden_operators.check_aggregation(variant)


@pytest.mark.parametrize(("variant", "height", "width"), [("b0", 1, 2), ("b1", 2, 1), ("b1", 1, 1)])
def test_is_the_definition(variant, height, width):
    weights = make_weights(variant, torch.float64)
    maps = make_maps(2, height, width, torch.float64)
    torch.testing.assert_close(
        aggregate_affinity(*maps, weights), aggregate_by_hand(*maps, weights), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_gradients(variant):
    weights = make_weights(variant, torch.float64)
    maps = make_maps(2, 1, 2, torch.float64)
    parameters = [tensor for chain in weights for layer in chain for tensor in layer]

    def run(coarse, middle, fine, *tensors):
        rest = iter(tensors)
        layers = [tuple(ConvNormLayer(*(next(rest) for _ in range(4))) for _ in c) for c in weights]
        return aggregate_affinity(coarse, middle, fine, AggregationWeights(*layers))

    inputs = [tensor.detach().requires_grad_() for tensor in (*maps, *parameters)]
    assert torch.autograd.gradcheck(run, inputs)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)),
    variant=st.sampled_from(["b0", "b1"]),
    orders=st.tuples(*[st.permutations(range(3))] * 3),
)
def test_layouts_do_not_matter(size, variant, orders):
    weights = make_weights(variant)
    maps = make_maps(*size)
    expected = aggregate_affinity(*maps, weights)
    strided = [stored_in_order(scale, order) for scale, order in zip(maps, orders, strict=True)]
    refined = aggregate_affinity(*strided, weights)
    assert refined.shape == (size[0], 4 * size[1], 4 * size[2])
    assert refined.is_contiguous()
    torch.testing.assert_close(refined, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_keeps_the_statistics(dtype):
    # Far from zero, a mean or variance in half precision would lose the map entirely.
    weights = make_weights("b0", dtype)
    maps = tuple(scale + 16 for scale in make_maps(3, 4, 5, dtype))
    refined = aggregate_affinity(*maps, weights)
    assert refined.dtype == dtype
    wide = AggregationWeights(
        *(
            tuple(ConvNormLayer(*(t.double() for t in layer)) for layer in chain)
            for chain in weights
        )
    )
    exact = aggregate_affinity(*(scale.double() for scale in maps), wide)
    error = float((refined.double() - exact).norm() / exact.norm())
    assert error < {torch.float16: 0.005, torch.bfloat16: 0.04}[dtype]


def test_autocast_casts_maps_and_weights():
    module = AffinityAggregation(PUBLISHED["b1"])
    maps = make_maps(2, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        refined = module(*maps)
    refined.sum().backward()
    assert refined.dtype == torch.bfloat16
    assert module.fine[0].conv.weight.grad.dtype == torch.float32


def change_layer(weights, chain, **parts):
    first, *rest = getattr(weights, chain)
    return weights._replace(**{chain: (first._replace(**parts), *rest)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: {"coarse": a["coarse"][None]}, ValueError, "coarse must have 3 dimensions"),
        (lambda a: {"coarse": torch.zeros(2, 0, 3)}, ValueError, "at least one row"),
        (
            lambda a: {"middle": a["middle"][:, 1:]},
            ValueError,
            r"middle must have shape \(2, 4, 6\)",
        ),
        (lambda a: {"fine": a["fine"][:1]}, ValueError, r"fine must have shape \(2, 8, 12\)"),
        (lambda a: {"fine": a["fine"].double()}, TypeError, "fine is torch.float64"),
        (
            lambda a: {"weights": a["weights"]._replace(fine=())},
            ValueError,
            r"weights\.fine must hold at least one layer",
        ),
        (
            lambda a: {
                "weights": change_layer(a["weights"], "fine", weight=torch.zeros(1, 1, 4, 4))
            },
            ValueError,
            "odd kernel, got 4",
        ),
        (
            lambda a: {
                "weights": change_layer(a["weights"], "fine", weight=torch.zeros(1, 1, 3, 5))
            },
            ValueError,
            r"weights\.fine\[0\]\.weight must have shape \(any, 1, 3, 3\)",
        ),
        (
            lambda a: {"weights": change_layer(a["weights"], "coarse", bias=torch.zeros(2))},
            ValueError,
            r"weights\.coarse\[0\]\.bias must have shape \(1\)",
        ),
        (
            lambda a: {
                "weights": change_layer(a["weights"], "middle", bias=torch.zeros(1).double())
            },
            TypeError,
            r"weights\.middle\[0\]\.bias is torch\.float64",
        ),
        (
            lambda a: {"weights": a["weights"]._replace(fine=a["weights"].fine[:1])},
            ValueError,
            r"last layer of weights\.fine must give 2 channel\(s\), got 1",
        ),
        (
            lambda a: {
                "weights": a["weights"]._replace(middle_to_fine=a["weights"].middle_to_fine[:1])
            },
            ValueError,
            r"last layer of weights\.middle_to_fine must give 1 channel\(s\), got 2",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    coarse, middle, fine = make_maps(2, 2, 3)
    arguments = {"coarse": coarse, "middle": middle, "fine": fine, "weights": make_weights("b1")}
    with pytest.raises(error, match=message):
        aggregate_affinity(**{**arguments, **change(arguments)})
