"""Sizes, logits and labels that the tests of the native upsampling operators share."""

from __future__ import annotations

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# (batch, classes, (h, w), (H, W))
SIZES = [
    (2, 19, (9, 12), (36, 48)),  # four times, as in training
    (1, 124, (7, 5), (23, 37)),  # no integer ratio, columns that fill no register
    (1, 5, (12, 17), (5, 6)),  # shrinks so far that logits are skipped
    (2, 9, (6, 8), (6, 8)),  # no resize
    (1, 3, (20, 3), (10, 50)),  # shrinks and grows
    (2, 2, (1, 1), (5, 7)),  # a single cell
]


def make_case(size, dtype=torch.float32, device="cpu", label_dtype=torch.uint8):
    batch, classes, small, large = size
    logits = 3 * torch.randn(batch, classes, *small, dtype=torch.float64).to(device, dtype)
    labels = torch.randint(min(classes, 128), (batch, *large), dtype=label_dtype)
    labels[torch.rand(labels.shape) < 0.2] = 127
    labels[:, 0, 0] = 0  # at least one pixel is not ignored
    return logits, labels.to(device)
