"""The resize and normalisation of uint8 frames in plain arithmetic, which a GPU can replay.

PyTorch resizes 8-bit images in fixed point on a CPU, and differently on a GPU. Here it is the
CPU's arithmetic on every device, so that a frame is the same to the network wherever it is resized:
weights of 15 bits, one axis after the other, each result rounded to 8 bits. The sums have at most
24 bits, so that float32 holds them exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vss_models.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvaluationTransform

MOST_WEIGHT = 2**15
"""What weights as whole numbers are below, as in PyTorch's 8-bit resize."""


class AxisTable(NamedTuple):
    """How one axis of a map is resized.

    Attributes:
        first: Positions of the first of the two samples that each result reads, (resized,) int64.
        second: Those of the second.
        first_weight: What the first sample weighs, float32, (resized,) along the axis of four.
        second_weight: What the second one weighs.
    """

    first: Tensor
    second: Tensor
    first_weight: Tensor
    second_weight: Tensor


class TransformTables(NamedTuple):
    """What :func:`transform_frames` needs for frames of one size.

    Attributes:
        passes: The axes to resize in turn, each as its number in (B, 3, H, W) and its table.
        half: One half; mean and deviation, (3, 1, 1) each.
    """

    passes: tuple[tuple[int, AxisTable], ...]
    half: Tensor
    mean: Tensor
    deviation: Tensor


def axis_table(size: int, resized: int, axis: int, device: torch.device | None = None) -> AxisTable:
    """Computes how PyTorch's 8-bit bilinear resize reads one axis.

    Args:
        size: Samples of the axis.
        resized: Samples of the result.
        axis: Its number in (B, 3, H, W).
        device: Where the tables are put.
    """
    source = np.maximum((np.arange(resized) + 0.5) * (size / resized) - 0.5, 0.0)
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    fraction = np.minimum(source - first, 1.0) * (second > first)
    weights = np.stack([1 - fraction, fraction])
    largest, bits = float(weights.max()), 0
    while int(0.5 + largest * 2 ** (bits + 1)) < MOST_WEIGHT:
        bits += 1
    # Whole numbers divided by a power of two: as exact as the whole numbers.
    weights = np.floor(weights * 2**bits + 0.5) / 2**bits
    shape = [1, 1, 1, 1]
    shape[axis] = resized
    found = (first, second, *weights.astype(np.float32).reshape(2, *shape))
    return AxisTable(*(torch.tensor(part, device=device) for part in found))


def transform_tables(
    transform: EvaluationTransform, size: tuple[int, int], device: torch.device | None = None
) -> TransformTables:
    """Computes the tables for frames of a size.

    Args:
        transform: The transform to do.
        size: (height, width) of the frames.
        device: Where the tables are put.
    """
    passes = []
    for resized in (transform.fitted_size(size), transform.output_size(size)):
        for axis in (3, 2):  # first along rows, as PyTorch does
            before, after = size[axis - 2], resized[axis - 2]
            if before != after:
                passes.append((axis, axis_table(before, after, axis, device)))
        size = resized
    mean, deviation = (
        torch.tensor(numbers, device=device)[:, None, None]
        for numbers in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return TransformTables(tuple(passes), torch.tensor([0.5], device=device), mean, deviation)


def transform_frames(frames: Tensor, tables: TransformTables) -> Tensor:
    """Resizes and normalises, with the bits of :class:`vss_models.data.EvaluationTransform`.

    Args:
        frames: uint8 (B, H, W, 3).
        tables: Those of this size.

    Returns:
        (B, 3, h, w) float32.
    """
    maps = frames.permute(0, 3, 1, 2)
    images = maps.to(torch.float32, memory_format=torch.contiguous_format)
    for axis, table in tables.passes:
        second = torch.addcmul(
            tables.half, images.index_select(axis, table.second), table.second_weight
        )
        first = images.index_select(axis, table.first)
        images = torch.addcmul(second, first, table.first_weight).floor_()
    return images.mul_(1 / 255).sub_(tables.mean).div_(tables.deviation)


__all__ = ["AxisTable", "TransformTables", "axis_table", "transform_frames", "transform_tables"]
