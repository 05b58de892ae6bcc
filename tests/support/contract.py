"""The table of operators that tests/test_contract.py holds to what each of them promises.

One row is one operator, or one way to call it. Which backends it has, the tests find out by
themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch

import vss_kernels
from tests.support import aggregation_cases, focal_cases, relation_cases, upsample_cases
from tests.support.operator_row import Row
from vss_kernels import (
    FocalGeometry,
    PooledLevel,
    add_layer_norm,
    aggregate_affinity,
    attend_selected,
    depthwise_gelu,
    focal_attention,
    focal_pool,
    fuse_pyramid,
    masked_affinity,
    select_tokens,
    upsample_argmax,
    upsample_cross_entropy,
)
from vss_kernels._runtime import native, triton_support
from vss_kernels._runtime.backends import operators


def _assert_equal_to_eager(row: Row, arguments: Sequence[Any], backend: str) -> None:
    """For whole numbers."""
    for have, want in zip(row.run(backend, arguments), row.run("eager", arguments), strict=True):
        assert torch.equal(have, want)


def _assert_same_classes(
    row: Row, arguments: Sequence[Any], backend: str, align_corners: bool = False
) -> None:
    """For classes, which may differ where rounding decides between two."""
    with vss_kernels.backend(backend, row.operator):
        upsample_cases.assert_same_but_for_rounding(*arguments, align_corners=align_corners)


_GEOMETRY = FocalGeometry(2, 1, (PooledLevel(3, 1), PooledLevel(1, 2)))


def _add_layer_norm(x, weight, bias, branch):
    factor = 0.5 * torch.arange(x.shape[0], device=x.device)
    return add_layer_norm(x, weight, bias, branch, factor)


def _add_layer_norm_arguments(*shape):
    vectors = torch.randn(shape[-1]), torch.randn(shape[-1])
    return torch.randn(shape), *vectors, torch.randn(shape)


def _depthwise_gelu_arguments(batch, height, width, channels):
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    return torch.randn(batch, height, width, channels), weight, bias


def _focal_pool_arguments(batch, height, width, channels, side, cells):
    x = torch.randn(batch, height, width, channels)
    return x, torch.randn(side * side), torch.randn(()), cells


def _focal_attention(query, key, value, bias, *pooled):
    pairs = list(zip(pooled[::2], pooled[1::2], strict=True))
    return focal_attention(query, key, value, pairs, bias, _GEOMETRY)


def _focal_attention_arguments(batch, windows, heads, dim):
    return focal_cases.flat_inputs(_GEOMETRY, windows, batch, heads, dim)[1]


def _fuse_pyramid(*levels):
    return fuse_pyramid(levels)


def _fuse_pyramid_aligned(*levels):
    return fuse_pyramid(levels, align_corners=True)


def _fuse_pyramid_arguments(batch, channels, *sizes):
    return [torch.randn(batch, channels, *size) for size in sizes]


def _aggregate_affinity(coarse, middle, fine, parameters):
    weights = aggregation_cases.unpack(parameters, aggregation_cases.PUBLISHED["b1"])
    return aggregate_affinity(coarse, middle, fine, weights)


def _aggregate_affinity_arguments(*size):
    parameters = aggregation_cases.make_parameters(aggregation_cases.PUBLISHED["b1"])
    return *aggregation_cases.make_maps(*size), parameters


def _select_tokens_arguments(clips, references, positions, tokens, channels, selected, top):
    tensors = relation_cases.make_tokens(clips, references, positions, tokens, channels)
    return *tensors, selected, top


def _masked_affinity_arguments(clips, references, positions, tokens, channels, selected):
    tensors = relation_cases.make_tokens(clips, references, positions, tokens, channels)
    return *tensors, relation_cases.make_index(clips, references, tokens, selected)


def _attend_selected_arguments(clips, references, positions, tokens, channels, selected):
    affinity = torch.randn(clips, references, selected, positions)
    value = torch.randn(clips, references, tokens, channels)
    return affinity, value, relation_cases.make_index(clips, references, tokens, selected)


def _mean_loss(logits, labels):
    return upsample_cross_entropy(logits, labels, ignore_index=127, reduction="mean_all")


def _single_losses(logits, labels):
    weights = torch.linspace(0.5, 1.5, logits.shape[1], device=logits.device)
    weights = weights.to(torch.promote_types(logits.dtype, torch.float32))
    return upsample_cross_entropy(
        logits, labels, weights, ignore_index=127, reduction="none", label_smoothing=0.1
    )


def _mean_loss_aligned(logits, labels):
    return upsample_cross_entropy(
        logits, labels, ignore_index=127, reduction="mean_all", align_corners=True
    )


def _argmax_aligned(logits, size):
    return upsample_argmax(logits, size, align_corners=True)


def _classes_and_confidence(logits, size, through):
    return upsample_argmax(logits, size, through, confidence=True)


def _upsample_argmax_arguments(batch, classes, small, size, through=None):
    logits, _ = upsample_cases.make_case((batch, classes, small, size))
    return (logits, size) if through is None else (logits, size, through)


_PYRAMID = {
    "size": (2, 5, (16, 24), (8, 12), (4, 6)),
    "other_size": (3, 20, (17, 35), (9, 18), (5, 7)),
    "large_size": (2, 40, (40, 50), (20, 25), (5, 7)),
    "cast_by_autocast": 3,
}
_UPSAMPLE = {
    "size": (2, 5, (9, 12), (36, 48)),
    "other_size": (3, 5, (7, 6), (23, 37)),
    "large_size": (1, 11, (40, 9), (90, 30)),
    "cast_by_autocast": 0,
}
_RELATION = {
    "size": (2, 3, 20, 6, 8, 5),
    "other_size": (3, 2, 35, 9, 16, 4),
    "large_size": (1, 2, 600, 12, 8, 6),
    "cast_by_autocast": 2,
}

CONTRACT = {
    "select_tokens": Row(
        "select_tokens",
        select_tokens,
        _select_tokens_arguments,
        size=(2, 3, 20, 6, 8, 5, 4),
        other_size=(3, 2, 35, 9, 16, 4, 5), large_size=(1, 2, 600, 12, 8, 6, 5),
        cast_by_autocast=2,
        has_gradient=False,
        native_on_gpu=False,
        assert_accurate=_assert_equal_to_eager,
    ),
    "masked_affinity": Row(
        "masked_affinity", masked_affinity, _masked_affinity_arguments, **_RELATION,
        native_on_gpu=False,
    ),
    "attend_selected": Row(
        "attend_selected", attend_selected, _attend_selected_arguments, **_RELATION,
        native_on_gpu=False,
    ),
    "aggregate_affinity": Row(
        "aggregate_affinity",
        _aggregate_affinity,
        _aggregate_affinity_arguments,
        size=(5, 2, 3),
        other_size=(6, 4, 7), large_size=(7, 3, 4),
        cast_by_autocast=3,
        eager_compiler="eager",
    ),
    "add_layer_norm": Row(
        "add_layer_norm",
        _add_layer_norm,
        _add_layer_norm_arguments,
        size=(2, 3, 5, 24),
        other_size=(3, 4, 7, 40), large_size=(2, 300, 64),
        cast_by_autocast=None,
        compiles_fused=False,
    ),
    "depthwise_gelu": Row(
        "depthwise_gelu",
        depthwise_gelu,
        _depthwise_gelu_arguments,
        size=(2, 5, 6, 19),
        other_size=(3, 9, 8, 40), large_size=(2, 35, 70, 72),
        cast_by_autocast=3,
    ),
    "focal_pool": Row(
        "focal_pool",
        focal_pool,
        _focal_pool_arguments,
        size=(2, 5, 6, 16, 2, (3, 5)),
        other_size=(3, 9, 8, 10, 2, (4, 2)), large_size=(2, 63, 63, 33, 3, (18, 17)),
        cast_by_autocast=3,
    ),
    "focal_attention": Row(
        "focal_attention",
        _focal_attention,
        _focal_attention_arguments,
        size=(2, (3, 5), 1, 7),
        other_size=(3, (4, 6), 1, 7), large_size=(2, (3, 4), 2, 8),
        smallest_size=(1, (1, 2), 1, 4),
        cast_by_autocast=8,
        native_on_gpu=False,
        eager_compiler="eager",
    ),
    "fuse_pyramid": Row("fuse_pyramid", _fuse_pyramid, _fuse_pyramid_arguments, **_PYRAMID),
    "fuse_pyramid, aligned corners": Row(
        "fuse_pyramid", _fuse_pyramid_aligned, _fuse_pyramid_arguments, **_PYRAMID
    ),
    "upsample_cross_entropy": Row(
        "upsample_cross_entropy", _mean_loss, lambda *size: upsample_cases.make_case(size),
        **_UPSAMPLE,
    ),
    "upsample_cross_entropy, single losses": Row(
        "upsample_cross_entropy", _single_losses, lambda *size: upsample_cases.make_case(size),
        **_UPSAMPLE,
    ),
    "upsample_cross_entropy, aligned corners": Row(
        "upsample_cross_entropy", _mean_loss_aligned, lambda *size: upsample_cases.make_case(size),
        **_UPSAMPLE,
    ),
    "upsample_argmax": Row(
        "upsample_argmax", upsample_argmax, _upsample_argmax_arguments, **_UPSAMPLE,
        has_gradient=False, assert_accurate=_assert_same_classes,
    ),
    "upsample_argmax, aligned corners": Row(
        "upsample_argmax", _argmax_aligned, _upsample_argmax_arguments, **_UPSAMPLE,
        has_gradient=False, assert_accurate=partial(_assert_same_classes, align_corners=True),
    ),
    "upsample_argmax, confidence": Row(
        "upsample_argmax",
        _classes_and_confidence,
        _upsample_argmax_arguments,
        size=(2, 5, (9, 12), (36, 48), (18, 25)),
        other_size=(3, 7, (7, 5), (23, 37), (24, 36)),
        large_size=(1, 11, (40, 9), (90, 30), (80, 20)),
        cast_by_autocast=0,
        has_gradient=False,
        assert_accurate=_assert_same_classes,
    ),
}  # fmt: skip


def rows_of(*backends: str, devices: Sequence[str] = ("cpu", "cuda")) -> list[Any]:
    """Parameters (row, backend, device) for tests of these backends.

    A run under ``TRITON_INTERPRET=1`` has those of Triton alone, on the CPU; any other run has
    Triton's on a GPU. Eager is tested on the CPU.
    """
    parameters = []
    for (name, row), device in itertools.product(CONTRACT.items(), devices):
        for implementation in operators()[row.operator].implementations:
            backend = implementation.backend
            interpreted = backend == "triton" and device == "cpu"
            if backend not in backends or interpreted != triton_support.INTERPRETED:
                continue
            on_gpu = device == "cuda"
            if on_gpu and (backend == "eager" or (backend == "native" and not row.native_on_gpu)):
                continue
            marks = [pytest.mark.gpu] if on_gpu else []
            if backend == "native":
                problem = native.problem()
                marks.append(pytest.mark.skipif(problem is not None, reason=str(problem)))
            identity = f"{name}-{backend}-{device}"
            parameters.append(pytest.param(row, backend, device, id=identity, marks=marks))
    return parameters
