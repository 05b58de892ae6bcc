"""Sizes, logits and labels for the tests of the upsampling operators."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

import vss_kernels
from tests.support.definitions import resize
from tests.support.precision import SLACK, error
from vss_kernels import upsample_argmax

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# (batch, classes, (h, w), (H, W))
SIZES = [
    (2, 19, (9, 12), (36, 48)),  # four times, as in training
    (1, 124, (7, 5), (23, 37)),  # no integer ratio, columns that fill no register
    (1, 5, (12, 17), (5, 6)),  # scaled down so far that logits are skipped
    (2, 9, (6, 8), (6, 8)),  # no resize
    (1, 3, (20, 3), (10, 50)),  # scaled down and up
    (2, 2, (1, 1), (5, 7)),  # a single cell
]

# What only align_corners=True treats in its own way: sides of one pixel, and steps of whole pixels.
ALIGNED_SIZES = [
    (1, 4, (5, 7), (1, 1)),
    (1, 4, (1, 6), (9, 1)),
    (1, 3, (2, 2), (33, 30)),
    (2, 3, (13, 9), (7, 5)),
]


def make_case(size, dtype=torch.float32, device="cpu", label_dtype=torch.uint8):
    batch, classes, small, large = size
    logits = 3 * torch.randn(batch, classes, *small, dtype=torch.float64).to(device, dtype)
    labels = torch.randint(min(classes, 128), (batch, *large), dtype=label_dtype)
    labels[torch.rand(labels.shape) < 0.2] = 127
    labels[:, 0, 0] = 0  # at least one pixel is not ignored
    return logits, labels.to(device)


def dense_logits(logits, size, through, resize_once):
    for step in (through, size) if through is not None else (size,):
        logits = resize_once(logits, step)
    return logits


def assert_same_but_for_rounding(logits, size, through=None, align_corners=False):
    """Labels equal eager's wherever the best logit leads by more than rounding may change."""
    argmax = partial(upsample_argmax, logits, size, through, align_corners=align_corners)
    classes, confidence = argmax(confidence=True)
    with vss_kernels.backend("eager"):
        expected, expected_confidence = argmax(confidence=True)
    exact = dense_logits(
        logits.double().cpu(), size, through, partial(resize, align_corners=align_corners)
    )
    rounded = dense_logits(
        logits.float().cpu(),
        size,
        through,
        partial(F.interpolate, mode="bilinear", align_corners=align_corners),
    )
    # What eager loses itself, and the last digits of the products.
    slack = 2 * float((rounded - exact).abs().max()) + 1e-6 * float(exact.abs().max())
    best = exact.topk(min(2, exact.shape[1]), dim=1).values
    leads = (best[:, 0] - best[:, -1] > slack) | (exact.shape[1] == 1)
    assert torch.equal(classes.cpu()[leads], expected.cpu()[leads])
    chosen = exact.gather(1, classes.long().cpu()[:, None])[:, 0]
    assert (best[:, 0] - chosen).max() <= slack
    probability = exact.softmax(1).amax(1)
    lost = error(expected_confidence, probability)
    assert error(confidence, probability) <= 2 * lost + SLACK[torch.float32]
    assert torch.equal(argmax(), classes)
    assert classes.dtype == expected.dtype
    assert classes.is_contiguous()
    assert confidence.is_contiguous()
