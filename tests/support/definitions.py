"""Plain restatements that the operators' tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_matrix(size: int, resized: int, align_corners: bool) -> Tensor:
    """Returns the (resized, size) matrix of a linear resize along one axis, in float64."""
    matrix = torch.zeros(resized, size, dtype=torch.float64)
    for position in range(resized):
        if align_corners:
            source = position * (size - 1) / (resized - 1) if resized > 1 else 0.0
        else:
            source = max((position + 0.5) * size / resized - 0.5, 0.0)
        first = min(int(source), size - 1)
        second = min(first + 1, size - 1)
        matrix[position, first] += 1 - (source - first)
        matrix[position, second] += source - first
    return matrix


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Returns the bilinear resize of the last two dimensions, in float64."""
    rows = resize_matrix(maps.shape[-2], size[0], align_corners)
    columns = resize_matrix(maps.shape[-1], size[1], align_corners)
    return rows @ maps.double() @ columns.mT
