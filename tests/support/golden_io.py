"""Reads the golden answers and compares results with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "golden"
OUTPUT_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 3e-4


class Golden(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors whose name starts with ``prefix.``, without it."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }


def load(name: str) -> Golden:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Golden(tensors, file.metadata() or {})


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Returns the largest difference relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    difference = (actual.detach().double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


def assert_output(actual: Tensor, expected: Tensor) -> None:
    error = relative_error(actual, expected)
    assert error <= OUTPUT_TOLERANCE, f"output is off by {error:.2e} of its maximum"


def assert_gradients(
    actual: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor],
    zero_by_construction: tuple[str, ...] = (),
    absolute: float = 2e-4,
) -> None:
    """Compares gradients by name; those that only hold rounding noise against ``absolute``."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        have = actual[name]
        assert have is not None, f"{name} got no gradient"
        if name in zero_by_construction:
            noise = float(have.abs().max())
            assert noise <= absolute, f"gradient of {name} is {noise:.2e}, expected zero"
        else:
            error = relative_error(have, want)
            assert error <= GRADIENT_TOLERANCE, (
                f"gradient of {name} is off by {error:.2e} of its maximum"
            )


def biases_without_effect(module: nn.Module) -> tuple[str, ...]:
    """Names of the biases of one-channel convolutions, which the norm behind them takes out."""
    return tuple(
        f"{name}.bias"
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d) and part.out_channels == 1
    )


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Renames ``tensors``; ``names`` maps each of their names, and each must be there."""
    assert set(tensors) == set(names), set(tensors) ^ set(names)
    return {names[name]: tensor for name, tensor in tensors.items()}


def aggregation_names(layers: int) -> dict[str, str]:
    """Released names of the affinity refinement (``layers`` in each chain) to ours."""
    chains = {
        "encoder_layer4": "coarse",
        "encoder_layer3": "middle",
        "encoder_layer2": "fine",
        "encoder_layer4to3": "coarse_to_middle",
        "encoder_layer3to2": "middle_to_fine",
    }
    return {
        f"{theirs}.{3 * layer + offset}{module}.{kind}": f"{ours}.{layer}.{part}.{kind}"
        for theirs, ours in chains.items()
        for layer in range(layers)
        for offset, module, part in ((0, ".conv2", "conv"), (1, "", "norm"))
        for kind in ("weight", "bias")
    }


def relation_names(layers: int) -> dict[str, str]:
    """Released names of the affinity module to ours."""
    names = {
        f"hpn.{theirs}": f"aggregation.{ours}" for theirs, ours in aggregation_names(layers).items()
    }
    for theirs, ours in (("q", "target_projections"), ("k", "reference_projections")):
        for scale in range(3):
            for kind in ("weight", "bias"):
                names[f"{theirs}{scale + 1}.{kind}"] = f"{ours}.{scale}.{kind}"
    return names


def attention_names(prefix: str = "") -> dict[str, str]:
    """Released names of the window attention to ours."""
    names = {
        f"{layer}.{kind}": f"{layer}.{kind}"
        for layer in ("qkv", "proj")
        for kind in ("weight", "bias")
    }
    table = "relative_position_bias_table"
    names[table] = "window_bias"
    names[f"{table}_to_neighbors"] = "around_bias"
    names[f"{table}_to_windows.0"] = "pooled_bias.0"
    for reference in range(3):
        names[f"{table}_to_windows_clips.{reference}"] = f"pooled_bias.{reference + 1}"
    return {f"{prefix}{theirs}": f"{prefix}{ours}" for theirs, ours in names.items()}


def focal_block_names() -> dict[str, str]:
    """Released names of one focal block (without ``blocks.<i>.``) to ours."""
    names = {
        theirs: ours.replace("attn.", "attention.")
        for theirs, ours in attention_names("attn.").items()
    }
    for kind in ("weight", "bias"):
        for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            names[f"{layer}.{kind}"] = f"{layer}.{kind}"
        names[f"pool_layers.0.{kind}"] = f"target_pool.{kind}"
        for reference in range(3):
            names[f"pool_layers_clips.{reference}.{kind}"] = f"reference_pools.{reference}.{kind}"
    return names
