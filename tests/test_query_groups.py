"""Attention in groups of queries: the same attention, and groups that fill a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vss_models.backbones.mit import ReducedAttention
from vss_models.backbones.query_groups import MULTIPROCESSORS, attend_in_groups, num_groups


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups_are_the_same_attention(groups: int) -> None:
    query = torch.randn(2, 12, 3, 4, dtype=torch.float64, requires_grad=True)
    key_value = torch.randn(2, 5, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    attended = attend_in_groups(query, key_value, groups)
    key, value = (part.transpose(1, 2) for part in key_value.unbind(2))
    weights = (query.transpose(1, 2) @ key.mT / 2).softmax(-1)
    expected = (weights @ value).transpose(1, 2)
    torch.testing.assert_close(attended, expected)
    cotangent = torch.randn_like(expected)
    for have, want in zip(
        torch.autograd.grad(attended, [query, key_value], cotangent),
        torch.autograd.grad(expected, [query, key_value], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize(
    ("heads", "side", "expected"),
    [(1, 120, 8), (2, 60, 4), (5, 30, 1), (8, 15, 1)],
)
def test_groups_at_the_published_sizes(heads: int, side: int, expected: int) -> None:
    """Two clips of four frames, 480x480: 225 keys at every level."""
    assert num_groups(8, heads, side**2, 225) == expected


def test_groups_divide_the_queries_and_never_take_longer() -> None:
    for batch, heads, queries, keys in [(1, 1, 25920, 405), (3, 2, 6481, 77), (0, 1, 64, 0)]:
        groups = num_groups(batch, heads, queries, keys)
        assert queries % groups == 0
        blocks = batch * heads * -(-keys // 128)
        waves = -(-blocks * groups // MULTIPROCESSORS)
        assert waves / groups <= -(-blocks // MULTIPROCESSORS) or blocks == 0
    assert num_groups(1, 1, 25920, 405) > 16
    assert num_groups(3, 2, 6481, 77) == 1  # a prime number of queries


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_groups_are_as_exact_as_one(dtype: torch.dtype) -> None:
    attention = ReducedAttention(64, 1, 8).cuda().to(dtype)
    x = torch.randn(8, 120, 120, 64, device="cuda", dtype=dtype, requires_grad=True)
    out = attention(x)
    gradients = torch.autograd.grad(out.square().mean(), [x, *attention.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    query = torch.randn(8, 14400, 1, 64, device="cuda", dtype=dtype, requires_grad=True)
    key_value = torch.randn(8, 225, 2, 1, 64, device="cuda", dtype=dtype, requires_grad=True)
    cotangent = torch.randn_like(query)
    exact, errors = None, []
    for groups, kind in ((1, torch.float64), (1, dtype), (8, dtype)):
        leaves = [t.detach().to(kind).requires_grad_() for t in (query, key_value)]
        grads = torch.autograd.grad(attend_in_groups(*leaves, groups), leaves, cotangent.to(kind))
        exact = grads if exact is None else exact
        errors.append(
            max(
                float((g.double() - e).abs().max() / e.abs().max())
                for g, e in zip(grads, exact, strict=True)
            )
        )
    assert errors[2] <= 2 * errors[1] + 1e-6


def test_the_layer_takes_one_group_where_nothing_is_gained() -> None:
    """On a CPU, bit for bit as PyTorch's own attention."""
    attention = ReducedAttention(8, 2, 1)
    x = torch.randn(1, 4, 6, 8, requires_grad=True)
    query = attention.query(x).view(1, 24, 2, 4).transpose(1, 2)
    key, value = attention.key_value(x).view(1, 24, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value)
    expected = attention.projection(attended.transpose(1, 2).reshape(1, 4, 6, 8))
    assert torch.equal(attention(x), expected)
