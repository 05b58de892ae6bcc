"""Triton operators on tensors of more than 2^31 elements, checked where an overflow would show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vss_kernels
from tests.support.huge_tensors import MANY, on_a_large_gpu, random
from tests.support.precision import SLACK, error
from vss_kernels import FocalGeometry, attend_selected, masked_affinity, select_tokens
from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.tables import num_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SAMPLE = 64  # positions at each end that are checked


@pytest.fixture(autouse=True)
def _triton():
    with on_a_large_gpu("triton", 40):
        yield


def shuffled(frames: int, tokens: int) -> Tensor:
    return torch.rand(1, frames, tokens, device="cuda").argsort(-1)


def rows_of(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(2, index[..., None].expand(-1, -1, -1, tokens.shape[-1]))


def assert_close(have: Tensor, exact: Tensor) -> None:
    assert error(have, exact.cpu()) <= SLACK[torch.bfloat16]


def test_masked_affinity():
    frames, tokens, positions, channels = 2, 8200, 2**17, 8
    target = random(1, positions, channels).requires_grad_()
    reference = random(1, frames, tokens, channels).requires_grad_()
    index = shuffled(frames, tokens)
    out = masked_affinity(target, reference, index)
    assert out.numel() > MANY
    rows = rows_of(reference.detach().double(), index)
    exact_target = target.detach().double()
    for end in (slice(0, SAMPLE), slice(-SAMPLE, None)):
        assert_close(out.detach()[:, :, end], rows[:, :, end] @ exact_target[:, None].mT)

    cotangent = torch.randn_like(out)
    grad_target, grad_reference = torch.autograd.grad(out, (target, reference), cotangent)
    for end in (slice(0, SAMPLE), slice(-SAMPLE, None)):
        part = cotangent[..., end].double()  # (1, R, S, sample)
        assert_close(grad_target[:, end], (part.mT @ rows).sum(1))
        part = cotangent[:, :, end].double() @ exact_target[:, None]
        assert_close(rows_of(grad_reference, index[:, :, end]), part)


def test_attend_selected():
    tokens, positions, channels = 8200, 2**18 + 3, 8
    affinity = random(1, 1, tokens, positions).requires_grad_()
    value = random(1, 1, tokens, channels).requires_grad_()
    index = shuffled(1, tokens)
    assert affinity.numel() > MANY
    out = attend_selected(affinity, value, index)
    cotangent = torch.randn_like(out)
    grad_affinity, grad_value = torch.autograd.grad(out, (affinity, value), cotangent)

    # Target positions are independent of each other, but for the gradient of the values.
    for end in (slice(0, SAMPLE), slice(-SAMPLE, None)):
        with vss_kernels.backend("eager"):
            results = []
            for dtype in (torch.float64, torch.bfloat16):
                part = affinity.detach()[..., end].to(dtype).requires_grad_()
                some = attend_selected(part, value.detach().to(dtype), index)
                (grad,) = torch.autograd.grad(some, part, cotangent[:, :, end].to(dtype))
                results.append((some.detach().cpu(), grad.cpu()))
        have = (out.detach()[:, :, end], grad_affinity[..., end])
        for found, exact, eager in zip(have, *results, strict=True):
            assert error(found, exact) <= 2 * error(eager, exact) + SLACK[torch.bfloat16]
    grad_rows = torch.zeros(tokens, channels, device="cuda", dtype=torch.float64)
    pieces = zip(affinity.detach()[0, 0].split(2**14, 1), cotangent[0, 0].split(2**14), strict=True)
    for piece, grad in pieces:
        grad_rows += piece.double().softmax(0) @ grad.double()
    assert_close(rows_of(grad_value, index)[0, 0], grad_rows)


def test_select_tokens():
    target, reference = random(2**17 + 3, 8, 8), random(2**17 + 3, 1, 2048, 8)
    assert reference.numel() > MANY
    index = select_tokens(target, reference, 1000)
    alone = select_tokens(target[-2:].clone(), reference[-2:].clone(), 1000)
    assert torch.equal(index[-2:], alone)
    with vss_kernels.backend("eager"):
        scores_decide = select_tokens(target[-2:].double(), reference[-2:].double(), 1000)
    different = (index[-2:, 0, :, None] != scores_decide[-2:, 0, None]).all(-1).sum()
    assert different <= 2  # tokens whose scores float32 cannot tell apart


def test_focal_attention():
    geometry, grid = FocalGeometry(), (9, 9)
    clips, heads, dim = 816, 8, 32
    side = geometry.window
    query = random(clips, grid[0] * side, grid[1] * side, heads, dim).requires_grad_()
    key_value = random(clips, num_tokens(geometry, grid), 2, heads, dim).requires_grad_()
    bias = random(heads, side**2, geometry.num_keys).requires_grad_()
    assert key_value.numel() > MANY
    out = attend_tokens(query, key_value, bias, geometry)
    cotangent = torch.zeros_like(out)
    cotangent[-2:].normal_()
    grads = torch.autograd.grad(out, (query, key_value, bias), cotangent)

    last = [tensor.detach()[-2:].clone().requires_grad_() for tensor in (query, key_value)]
    alone = attend_tokens(*last, bias, geometry)
    alone_grads = torch.autograd.grad(alone, (*last, bias), cotangent[-2:])
    assert torch.equal(out[-2:], alone)
    for have, want in zip(grads[:2], alone_grads[:2], strict=True):
        assert want.float().abs().max() > 0
        assert torch.equal(have[-2:], want)
        assert not have[:-2].any()
    assert_close(grads[2], alone_grads[2].double())
