"""The Triton operators on a GPU at the published B1 sizes: accuracy, repeatability, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager
from tests.support.repeats import assert_replays
from vss_kernels import FocalGeometry, attend_selected, masked_affinity, select_tokens
from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.tables import num_tokens

pytestmark = pytest.mark.gpu
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


class Case(NamedTuple):
    """An operator's public name, a call of it and that call's tensors."""

    operator: str
    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def affinity_case(dtype: torch.dtype, positions: int, channels: int) -> Case:
    """480x480, two clips; scaled so that affinities are of the order of one."""
    target = torch.randn(2, positions, channels, device="cuda") * channels**-0.25
    reference = torch.randn(2, 3, 225, channels, device="cuda") * channels**-0.25
    index = some_tokens(2, 225, 112)
    return Case(
        "masked_affinity",
        lambda target, reference: masked_affinity(target, reference, index),
        (target.to(dtype), reference.to(dtype)),
    )


def attend_case(dtype: torch.dtype, clips: int, positions: int, tokens: int) -> Case:
    kept = tokens // 2
    affinity = torch.randn(clips, 3, kept, positions, device="cuda").relu()
    value = torch.randn(clips, 3, tokens, 256, device="cuda")
    index = some_tokens(clips, tokens, kept)
    return Case(
        "attend_selected",
        lambda affinity, value: attend_selected(affinity, value, index),
        (affinity.to(dtype), value.to(dtype)),
    )


def focal_case(dtype: torch.dtype, clips: int, grid: tuple[int, int]) -> Case:
    geometry = FocalGeometry()
    side = geometry.window
    query = torch.randn(clips, grid[0] * side, grid[1] * side, 8, 32, device="cuda")
    key_value = torch.randn(clips, num_tokens(geometry, grid), 2, 8, 32, device="cuda")
    bias = torch.randn(8, side**2, geometry.num_keys, device="cuda")
    return Case(
        "focal_attention",
        lambda *tensors: attend_tokens(*tensors, geometry),
        (query.to(dtype), key_value.to(dtype), bias.to(dtype)),
    )


def some_tokens(clips: int, tokens: int, kept: int) -> Tensor:
    scores = torch.rand(clips, 3, tokens, device="cuda")
    return scores.argsort(-1)[..., :kept].sort(-1).values


CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "affinity 1/8": lambda dtype: affinity_case(dtype, 3600, 128),
    "affinity 1/16": lambda dtype: affinity_case(dtype, 900, 320),
    "affinity 1/32": lambda dtype: affinity_case(dtype, 225, 512),
    "attend 480x480": lambda dtype: attend_case(dtype, 2, 3600, 225),
    "attend 480x864": lambda dtype: attend_case(dtype, 1, 6480, 405),
    "focal 480x480": lambda dtype: focal_case(dtype, 2, (9, 9)),
    "focal 480x864": lambda dtype: focal_case(dtype, 1, (9, 16)),
}


def make_step(case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """Returns a call that gives the result and all gradients."""
    leaves = [tensor.requires_grad_() for tensor in case.inputs]
    with vss_kernels.backend("triton", case.operator):
        cotangent = torch.randn_like(case.run(*leaves))

    def step() -> tuple[Tensor, ...]:
        with vss_kernels.backend("triton", case.operator):
            out = case.run(*leaves)
            return out, *torch.autograd.grad(out, leaves, cotangent)

    return step


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_as_accurate_as_eager(name, dtype):
    case = CASES[name](dtype)
    assert_as_accurate_as_eager(case.run, case.inputs, case.operator, "triton")


@pytest.mark.parametrize("name", CASES)
def test_as_accurate_as_eager_in_tf32(name):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        case = CASES[name](torch.float32)
        assert_as_accurate_as_eager(case.run, case.inputs, case.operator, "triton")
    finally:
        torch.set_float32_matmul_precision(before)


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_two_runs_and_a_graph_agree_bit_for_bit(name, dtype):
    step = make_step(CASES[name](dtype))
    first, second = step(), step()
    for have, want in zip(second, first, strict=True):
        assert torch.equal(have, want)
    assert_replays(step)


@DTYPES
@pytest.mark.parametrize(("clips", "tokens"), [(2, 225), (1, 405)])
def test_selection(clips, tokens, dtype):
    target = torch.randn(clips, tokens, 512, device="cuda").to(dtype)
    reference = torch.randn(clips, 3, tokens, 512, device="cuda").to(dtype)
    kept = tokens // 2

    def select() -> tuple[Tensor, ...]:
        with vss_kernels.backend("triton", "select_tokens"):
            return (select_tokens(target, reference, kept),)

    (index,) = select()
    assert (index.diff(dim=-1) > 0).all()
    affinity = reference.double().flatten(1, 2) @ target.double().mT
    scores = affinity.topk(5, -1).values.sum(-1).view(clips, 3, tokens)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(2, index, True)
    worst = scores.masked_fill(~chosen, torch.inf).amin(-1)
    best_left = scores.masked_fill(chosen, -torch.inf).amax(-1)
    # Tokens may change places only where float32 cannot tell their scores apart.
    assert (worst >= best_left - 1e-5 * scores.abs().amax()).all()
    assert torch.equal(select()[0], index)
    assert_replays(select)
