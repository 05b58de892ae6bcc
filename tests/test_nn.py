"""The modules around the operators, against the golden answers."""

from __future__ import annotations

import pytest
import torch

from tests.support import golden_io, golden_operators
from tests.support.aggregation_cases import KEEP, PUBLISHED
from vss_kernels import FocalGeometry, PooledLevel
from vss_kernels.focal_attention.geometry import relative_position_index
from vss_kernels.nn import (
    AffinityAggregation,
    AggregationLayers,
    FocalAttention,
    FocalBlock,
    RelationAffinity,
)
from vss_kernels.nn.focal import assemble_bias


@pytest.mark.parametrize("variant", golden_operators.VARIANTS)
def test_relation_affinity_golden(variant):
    golden_operators.check_relation(variant)


def to_windows(x: torch.Tensor) -> torch.Tensor:
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // 7, 7, width // 7, 7, dim)
    return x.transpose(2, 3).reshape(-1, 49, dim)


@pytest.mark.parametrize("size", ["7x14", "14x21", "21x28"])
def test_focal_attention_golden(size):
    golden = golden_io.load(f"op_focal_attention_{size}")
    names = golden_io.attention_names()
    module = FocalAttention(64, 2)
    module.load_state_dict(golden_io.rename(golden.group("state"), names))
    inputs = {name: tensor.requires_grad_() for name, tensor in golden.group("input").items()}
    pooled = ["target_pooled", *(f"reference{i}_pooled" for i in range(3))]
    windows = to_windows(module(inputs["target"], [inputs[name] for name in pooled]))
    golden_io.assert_output(windows, golden.tensors["output.windows"])
    windows.backward(golden.tensors["cotangent.windows"])
    golden_io.assert_gradients(
        {name: tensor.grad for name, tensor in inputs.items()}, golden.group("grad.input")
    )
    golden_io.assert_gradients(
        {name: parameter.grad for name, parameter in module.named_parameters()},
        golden_io.rename(golden.group("grad.state"), names),
    )


@pytest.mark.parametrize("size", ["5x6", "10x20", "15x18"])
def test_focal_block_golden(size):
    golden = golden_io.load(f"op_focal_layer_{size}")
    names = golden_io.focal_block_names()
    module = FocalBlock(64, 2)
    module.load_state_dict(golden_io.rename(golden.group("state.blocks.0"), names))
    frames = golden.tensors["input.x"].requires_grad_()  # (B, T, C, H, W)
    maps = frames.permute(0, 1, 3, 4, 2)
    updated = module(maps[:, 3], maps[:, :3]).permute(0, 3, 1, 2)
    out = torch.cat([frames[:, :3], updated[:, None]], dim=1)
    golden_io.assert_output(out, golden.tensors["output.x"])
    out.backward(golden.tensors["cotangent.x"])
    golden_io.assert_gradients({"x": frames.grad}, golden.group("grad.input"))
    golden_io.assert_gradients(
        {name: parameter.grad for name, parameter in module.named_parameters()},
        golden_io.rename(golden.group("grad.state.blocks.0"), names),
    )


def test_aggregation_takes_its_layers():
    layers = AggregationLayers([(1, 1, 3)], [(3, 1, 3)], [(5, 1, 2)], [(3, 3, 2)], [(3, 2, 1)])
    module = AffinityAggregation(layers)
    shapes = [tuple(layer.weight.shape) for chain in module.weights() for layer in chain]
    assert shapes == [(3, 1, 1, 1), (3, 1, 3, 3), (2, 1, 5, 5), (2, 3, 3, 3), (1, 2, 3, 3)]
    assert module(torch.randn(2, 2, 3), torch.randn(2, 4, 6), torch.randn(2, 8, 12)).min() >= 0


def test_at_least_one_token_is_kept():
    module = RelationAffinity((4, 4, 4), PUBLISHED["b1"], keep=0.1)
    assert module.num_selected(3) == 1
    assert RelationAffinity((4, 4, 4), PUBLISHED["b0"], KEEP["b0"]).num_selected(35) == 28
    assert RelationAffinity((4, 4, 4), PUBLISHED["b0"], 0.5).num_selected(35) == 17


def test_relate_takes_projected_tokens():
    module = RelationAffinity((3, 4, 5), PUBLISHED["b0"], 0.5)
    sizes = [(8, 12), (4, 6), (2, 3)]
    target = [torch.randn(2, dim, *size) for dim, size in zip((3, 4, 5), sizes, strict=True)]
    references = [torch.randn(2, 3, dim, 2, 3) for dim in (3, 4, 5)]
    affinity, index = module(target, references)
    assert affinity.shape == (2, 3, 3, 96)
    kept = module.project_references([scale[:, 1:2] for scale in references])
    again, index_again = module.relate(module.project_target(target), kept, sizes)
    assert torch.equal(index_again, index[:, 1:2])
    torch.testing.assert_close(again, affinity[:, 1:2])


def test_focal_block_with_other_numbers_of_references():
    block = FocalBlock(16, 4, reference_levels=(2, 1, 3, 7, 1), reference_kernels=(3, 1, 3, 5, 7))
    target, references = torch.randn(2, 9, 16, 16), torch.randn(2, 5, 9, 16, 16)
    assert block(target, references).shape == target.shape
    alone = FocalBlock(16, 4, reference_levels=(), reference_kernels=())
    assert alone(target, references[:, :0]).shape == target.shape


def test_focal_block_starts_by_pooling_the_mean():
    block = FocalBlock(32, 8)
    assert torch.allclose(block.target_pool.weight, torch.full((1, 49), 1 / 49))
    assert [pool.weight.shape[1] for pool in block.reference_pools] == [49, 9, 4]


def test_index_buffers_are_not_saved():
    assert not any("index" in name for name in FocalBlock(16, 2).state_dict())


def test_focal_block_trains_under_autocast():
    block = FocalBlock(16, 2)
    target, references = torch.randn(1, 7, 7, 16), torch.randn(1, 3, 7, 7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(target, references)
    out.square().mean().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_modules_compile_without_graph_breaks():
    relation = RelationAffinity((3, 4, 5), PUBLISHED["b0"], KEEP["b0"])
    target = [torch.randn(1, 3, 8, 12), torch.randn(1, 4, 4, 6), torch.randn(1, 5, 2, 3)]
    references = [torch.randn(1, 2, dim, 2, 3) for dim in (3, 4, 5)]
    compiled = torch.compile(relation, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(target, references), relation(target, references))
    block = FocalBlock(16, 2)
    frames = torch.randn(1, 9, 8, 16), torch.randn(1, 3, 9, 8, 16)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*frames), block(*frames))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AffinityAggregation(PUBLISHED["b1"][:4]), "must hold 5 chains .* got 4"),
        (
            lambda: AffinityAggregation(PUBLISHED["b1"]._replace(fine=[])),
            r"layers.fine must hold at least one layer .* got \[\]",
        ),
        (
            lambda: AffinityAggregation(PUBLISHED["b1"]._replace(middle=[(3, 1)])),
            r"layers.middle must hold .* got \[\(3, 1\)\]",
        ),
        (
            lambda: AffinityAggregation(PUBLISHED["b1"]._replace(coarse=[(3, 0, 1)])),
            r"layers.coarse must hold .*positive, got \[\(3, 0, 1\)\]",
        ),
        (
            lambda: RelationAffinity((4, 4), PUBLISHED["b1"], KEEP["b1"]),
            r"dims must be three sizes.*got \(4, 4\)",
        ),
        (
            lambda: RelationAffinity((4, 4, 4), PUBLISHED["b1"], 0.0),
            r"keep must be in \(0, 1\], got 0.0",
        ),
        (lambda: FocalAttention(30, 8), "num_heads must divide dim 30, got num_heads 8"),
        (lambda: FocalBlock(16, 2, reference_levels=(1, 2)), "equally many"),
        (lambda: FocalBlock(16, 2, reference_levels=(1, 2, 8)), "between 1 and the window 7"),
        (
            lambda: FocalBlock(16, 2)(torch.zeros(1, 7, 7, 16), torch.zeros(1, 2, 7, 7, 16)),
            r"references must have shape \(1, 3, 7, 7, 16\).*got \(1, 2, 7, 7, 16\)",
        ),
        (
            lambda: FocalAttention(16, 2, FocalGeometry(2, 1, (PooledLevel(1, 1),)))(
                torch.zeros(1, 3, 2, 16), [torch.zeros(1, 1, 1, 16)]
            ),
            "positive multiples of the window 2, got 3 x 2",
        ),
        (
            lambda: FocalAttention(16, 2, FocalGeometry(2, 1, (PooledLevel(1, 1),)))(
                torch.zeros(1, 4, 2, 16), [torch.zeros(1, 1, 1, 16)]
            ),
            r"pooled must have \[\(2, 1\)\] cells for a target of 4 x 2.*got \[\(1, 1\)\]",
        ),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_only_entries_that_several_places_look_at_are_gathered() -> None:
    """The ring has an entry for each query and key: most of all entries, none in the inverse."""
    attention = FocalAttention(16, 2)
    side = attention.geometry.window
    common = (2 * side - 1) ** 2 + sum(table.shape[1] for table in attention.pooled_bias)
    assert attention.bias_places.shape == (common, side**2)
    assert common < attention.around_bias[0, 0].numel()


def test_attention_is_built_without_memory() -> None:
    with torch.device("meta"):
        attention = FocalAttention(16, 2)
    assert attention.bias_places.shape == FocalAttention(16, 2).bias_places.shape


def test_bias_tables_and_their_gradient_are_those_of_indexing() -> None:
    torch.manual_seed(0)
    attention = FocalAttention(16, 2).double()
    side, geometry = attention.geometry.window, attention.geometry
    window = relative_position_index(side, side)
    levels = [relative_position_index(side, level.kernel) for level in geometry.pooled]
    want = assemble_bias(
        attention.window_bias,
        window,
        attention.around_bias,
        list(zip(attention.pooled_bias, levels, strict=True)),
    )
    have = attention.bias()
    assert torch.equal(have, want)
    with torch.no_grad():
        assert torch.equal(attention.bias(), want)
    tables = [attention.window_bias, attention.around_bias, *attention.pooled_bias]
    weights = torch.randn_like(want)
    expected = torch.autograd.grad((want * weights).sum(), tables)
    for one, other in zip(
        torch.autograd.grad((have * weights).sum(), tables), expected, strict=True
    ):
        torch.testing.assert_close(one, other)
