"""Native operators on tensors of more than 2^31 elements: the last samples are as if alone.

An offset that overflowed 32 bits would read or write elsewhere.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.aggregation_cases import PUBLISHED
from tests.support.huge_tensors import MANY, on_a_large_gpu, random
from vss_kernels import (
    aggregate_affinity,
    depthwise_gelu,
    focal_pool,
    fuse_pyramid,
    upsample_argmax,
    upsample_cross_entropy,
)
from vss_kernels.nn import AffinityAggregation

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _native():
    with on_a_large_gpu("native", 60):
        yield


def result_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]


def assert_last_as_if_alone(function, inputs: list[Tensor]) -> None:
    """The function must treat samples, the first dimension, one by one."""
    whole = result_and_gradients(function, inputs)
    assert max(tensor.numel() for tensor in (*inputs, *whole)) > MANY
    alone = result_and_gradients(function, [tensor[-2:].clone() for tensor in inputs])
    for have, want in zip(whole, alone, strict=True):
        assert want.float().abs().max() > 0
        assert torch.equal(have[-2:], want)


def test_aggregate_affinity():
    weights = AffinityAggregation(PUBLISHED["b1"]).to("cuda", torch.bfloat16).weights()
    maps = MANY // (60 * 60) + 8
    inputs = [random(maps, side, side) for side in (15, 30, 60)]
    assert_last_as_if_alone(lambda *scales: aggregate_affinity(*scales, weights), inputs)


def test_depthwise_gelu():
    weight, bias = random(256, 1, 3, 3), random(256)
    x = random(MANY // (480 * 480 * 256) + 3, 480, 480, 256)
    assert_last_as_if_alone(lambda x: depthwise_gelu(x, weight, bias), [x])


def test_focal_pool():
    weight, bias = random(49), random(1)[0]
    x = random(MANY // (480 * 480 * 256) + 3, 480, 480, 256)
    assert_last_as_if_alone(lambda x: focal_pool(x, weight, bias, (69, 69)), [x])


def test_fuse_pyramid():
    samples = MANY // (480 * 480 * 256) + 3
    levels = [random(samples, 256, side, side) for side in (480, 240, 60)]
    assert_last_as_if_alone(lambda *levels: fuse_pyramid(levels), levels)


def test_upsample_cross_entropy():
    samples = MANY // (480 * 480 * 256) + 3
    labels = torch.randint(256, (480, 480), device="cuda").to(torch.uint8)

    def losses(logits: Tensor) -> Tensor:
        expanded = labels.expand(len(logits), -1, -1)
        return upsample_cross_entropy(logits, expanded, ignore_index=255, reduction="none")

    assert_last_as_if_alone(losses, [random(samples, 256, 480, 480)])


def test_upsample_argmax():
    logits = random(MANY // (512 * 512) + 3, 3, 8, 8)
    classes = upsample_argmax(logits, (512, 512))
    assert classes.numel() > MANY
    alone = upsample_argmax(logits[-2:].clone(), (512, 512))
    assert len(alone.unique()) > 1
    assert torch.equal(classes[-2:], alone)
