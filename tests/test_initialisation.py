"""The heads start from the published distributions.

PyTorch's defaults (uniform within 1 / sqrt(fan-in), biases too) with three exceptions: the
fusion's convolution, the bias tables and the poolings of a focal block.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vss_models import create_model

SMALL_ENCODER = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1)}
HEADS = ("segformer_b1", "mrcfa_b0", "mrcfa_b1", "cffm_b1", "cffm_b5")


def assert_spread(name: str, values: Tensor, expected: float, kurtosis: float) -> None:
    """Checks mean and deviation of independent values to five of their standard errors."""
    count = values.numel()
    deviation_error = expected * math.sqrt((kurtosis - 1) / (4 * count))
    assert abs(float(values.mean())) <= 5 * expected / math.sqrt(count), name
    root_mean_square = float(values.square().mean().sqrt())
    assert abs(root_mean_square - expected) <= 5 * deviation_error, name


def assert_uniform(name: str, values: Tensor, bound: float) -> None:
    """Checks that values look drawn uniformly from -bound to bound."""
    assert float(values.abs().max()) <= bound, name
    assert float(values.abs().min()) > 0, name
    if values.numel() >= 50:
        assert_spread(name, values, bound / math.sqrt(3), kurtosis=1.8)


def assert_truncated_normal(name: str, values: Tensor, deviation: float) -> None:
    """Checks that values look drawn from a normal distribution; truncation is far outside."""
    assert_spread(name, values, deviation, kurtosis=3)


@pytest.mark.parametrize("name", HEADS)
def test_head_starts_as_published(name: str) -> None:
    torch.manual_seed(0)
    head = create_model(name, 124, **SMALL_ENCODER).head
    seen = set()
    for prefix, module in head.named_modules():
        parameters = {
            parameter_name: parameter.detach()
            for parameter_name, parameter in module.named_parameters(prefix, recurse=False)
        }
        seen |= set(parameters)
        weight, bias = parameters.get(f"{prefix}.weight"), parameters.get(f"{prefix}.bias")
        if prefix == "fusion.mix":
            # Fan-out gain: sqrt(2 / 256) = 0.088.
            assert_truncated_normal(prefix, weight, math.sqrt(2 / 256))
        elif "_pool" in prefix and isinstance(module, nn.Linear):
            assert torch.equal(weight, torch.full_like(weight, 1 / weight.numel()))
            assert torch.equal(bias, torch.zeros_like(bias))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(weight[0].numel())
            assert_uniform(f"{prefix}.weight", weight, bound)
            assert_uniform(f"{prefix}.bias", bias, bound)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
            assert torch.equal(weight, torch.ones_like(weight))
            assert torch.equal(bias, torch.zeros_like(bias))
        else:
            for parameter_name, table in parameters.items():
                if parameter_name.endswith("window_bias"):
                    assert torch.equal(table, torch.zeros_like(table)), parameter_name
                else:
                    assert_truncated_normal(parameter_name, table, 0.02)
    assert seen == {parameter_name for parameter_name, _ in head.named_parameters()}
