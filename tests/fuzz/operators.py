"""Malformed arguments of the operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vss_kernels
from tests.fuzz.harness import Case
from tests.support.aggregation_cases import PUBLISHED, make_maps, make_parameters, unpack
from tests.support.focal_cases import SMALL, make_inputs

Arguments = dict[str, Any]


def _make_arguments() -> dict[str, Arguments]:
    """Right arguments of every operator, by its name."""
    chains = PUBLISHED["b0"]
    coarse, middle, fine = make_maps(3, 4, 5)
    query, key, value, pooled, bias = make_inputs(SMALL, (2, 2))
    target, reference = torch.randn(2, 12, 8), torch.randn(2, 3, 10, 8)
    index = torch.randint(0, 10, (2, 3, 4))
    return {
        "select_tokens": {"target": target, "reference": reference, "num_selected": 4, "top": 5},
        "masked_affinity": {"target": target, "reference": reference, "index": index},
        "aggregate_affinity": {
            "coarse": coarse,
            "middle": middle,
            "fine": fine,
            "weights": unpack(make_parameters(chains), chains),
        },
        "attend_selected": {
            "affinity": torch.randn(2, 3, 4, 12),
            "value": torch.randn(2, 3, 10, 8),
            "index": index,
        },
        "depthwise_gelu": {
            "x": torch.randn(2, 6, 5, 4),
            "weight": torch.randn(4, 1, 3, 3),
            "bias": torch.randn(4),
        },
        "focal_pool": {
            "x": torch.randn(2, 9, 7, 4),
            "weight": torch.randn(9),
            "bias": torch.zeros(()),
            "cells": (3, 2),
        },
        "focal_attention": {
            "query": query,
            "key": key,
            "value": value,
            "pooled": pooled,
            "bias": bias,
            "geometry": SMALL,
        },
        "upsample_cross_entropy": {
            "input": torch.randn(2, 5, 6, 7),
            "target": torch.randint(0, 5, (2, 12, 14)),
            "weight": torch.rand(5),
            "ignore_index": 255,
            "reduction": "mean",
            "label_smoothing": 0.0,
        },
        "upsample_argmax": {
            "logits": torch.randn(2, 5, 6, 7),
            "size": (12, 14),
            "through": (9, 9),
            "confidence": False,
        },
        "fuse_pyramid": {"levels": [torch.randn(2, 4, 16, 12), torch.randn(2, 4, 8, 6)]},
    }


def operators(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Calls of the operators in which one or two arguments are of another kind, size or value."""
    torch.manual_seed(int(rng.integers(1 << 30)))
    while True:
        everything = _make_arguments()
        name = list(everything)[int(rng.integers(len(everything)))]
        arguments = everything[name]
        changes = []
        for _ in range(int(rng.integers(1, 3))):
            argument = list(arguments)[int(rng.integers(len(arguments)))]
            kind, arguments[argument] = _changed(arguments[argument], rng)
            changes.append(f"{argument} {kind}")
        yield Case(
            f"{name}: {', '.join(changes)}",
            lambda name=name, arguments=arguments: _compare(name, arguments),
            (f"{name}: ",),
        )


def _compare(name: str, arguments: Arguments) -> None:
    """Compares an operator that takes its arguments with its definition."""
    operator = getattr(vss_kernels, name)
    result = operator(**arguments)
    with vss_kernels.backend("eager"):
        expected = operator(**arguments)
    for have, want in zip(_as_tuple(result), _as_tuple(expected), strict=True):
        assert have.shape == want.shape, f"shape {tuple(have.shape)}, not {tuple(want.shape)}"
        assert have.dtype == want.dtype, f"{have.dtype}, not {want.dtype}"
        if have.device.type == "meta":
            continue
        if not have.is_floating_point():
            assert (have != want).sum() <= 0.02 * have.numel(), "other integers"
            continue
        tolerance = 3e-2 if have.dtype in (torch.float16, torch.bfloat16) else 1e-4
        # Beside a bias of 1e6 a softmax has lost the digits of its logits.
        tolerance = max(tolerance, 4 * torch.finfo(torch.float32).eps * _largest(arguments))
        assert torch.allclose(have, want, tolerance, tolerance, equal_nan=True), "other numbers"


def _largest(value: Any) -> float:
    """The largest finite magnitude in the tensors of some arguments."""
    if isinstance(value, Tensor):
        if not value.numel() or value.device.type == "meta":
            return 0.0
        return float(value.detach().double().abs().nan_to_num(0, 0, 0).max())
    if not isinstance(value, dict | list | tuple):
        return 0.0
    entries = value.values() if isinstance(value, dict) else value
    return max((_largest(entry) for entry in entries), default=0.0)


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _changed(value: Any, rng: np.random.Generator) -> tuple[str, Any]:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type == "meta":
            return "the same", value
        kinds: dict[str, Callable[[], Any]] = {**_TENSOR_CHANGES, **_ANY}
        kind = list(kinds)[int(rng.integers(len(kinds)))]
        change = kinds[kind]
        return kind, change(value) if kind in _TENSOR_CHANGES else change()
    if isinstance(value, list | tuple) and len(value) and isinstance(value[0], Tensor | tuple):
        choice = int(rng.integers(4))
        if choice == 0:
            return "is empty", []
        if choice == 1:
            return "has one entry less", value[:-1]
        place = int(rng.integers(len(value)))
        kind, entry = _changed(value[place], rng)
        entries = [*value[:place], entry, *value[place + 1 :]]
        same = value._make(entries) if hasattr(value, "_make") else type(value)(entries)
        return f"[{place}] {kind}", same
    others = [
        None, -1, 0, 3, 10**6, 1.5, float("nan"), "mean", "none", "text", (), (0, 5), (-1, 5),
        (4, 5), (1.5, 2), (3, 4, 5), ("a", "b"), [], torch.zeros(2), True, {},
    ]  # fmt: skip
    other = others[int(rng.integers(len(others)))]
    return f"= {other!r}", other


_TENSOR_CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "one dimension more": lambda tensor: tensor[None],
    "one dimension less": lambda tensor: tensor[0] if tensor.dim() else tensor[None, None],
    "without rows": lambda tensor: tensor[:0] if tensor.dim() else tensor[None][:0],
    "without last": lambda tensor: tensor[..., :0] if tensor.dim() else tensor,
    "one row less": lambda tensor: tensor[:-1] if tensor.dim() else tensor,
    "shorter last": lambda tensor: tensor[..., :-1] if tensor.dim() else tensor,
    "expanded": lambda tensor: tensor[:1].expand(tensor.shape) if tensor.dim() else tensor,
    "backwards": lambda tensor: tensor.flip(0) if tensor.dim() else tensor,
    "transposed": lambda tensor: tensor.mT if tensor.dim() > 1 else tensor,
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "int32": lambda tensor: tensor.int(),
    "bool": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse() if tensor.dim() else tensor,
    "numpy": lambda tensor: tensor.numpy(),
    "a list": lambda tensor: tensor.tolist(),
    "nan": lambda tensor: torch.full(tensor.shape, float("nan")),
    "huge": lambda tensor: torch.full(tensor.shape, 2**40 if tensor.dtype == torch.int64 else 1e6),
    "negative": lambda tensor: -tensor - 1,
}
_ANY: dict[str, Callable[[], Any]] = {
    "= None": lambda: None,
    "= 5": lambda: 5,
    "= text": lambda: "text",
    "= []": list,
    "= {}": dict,
}
