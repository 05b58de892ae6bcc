"""The upsampling operators and the fusion of feature levels as modules."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn
from torch.nn import functional as F

from vss_kernels.nn import FusePyramid, UpsampleArgmax, UpsampleCrossEntropy


def test_modules_are_there_after_importing_the_package():
    program = "import vss_kernels; print(vss_kernels.nn.UpsampleCrossEntropy.__name__)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "UpsampleCrossEntropy", run.stderr


def test_the_loss_takes_the_place_of_the_one_of_torch():
    logits, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 7, 9))
    labels[:, :3] = 255
    weight = torch.rand(5) + 0.5
    for corners in (False, True):
        upsampled = F.interpolate(logits, (7, 9), mode="bilinear", align_corners=corners)
        for options in ({}, {"reduction": "sum", "label_smoothing": 0.1}):
            expected = nn.CrossEntropyLoss(weight, ignore_index=255, **options)(upsampled, labels)
            criterion = UpsampleCrossEntropy(weight, 255, align_corners=corners, **options)
            torch.testing.assert_close(criterion(logits, labels), expected)
    assert list(criterion.state_dict()) == ["weight"]
    assert criterion.double().weight.dtype == torch.float64
    assert not UpsampleCrossEntropy().state_dict()


def test_argmax():
    logits = torch.randn(2, 5, 3, 4)
    for corners in (False, True):
        through = F.interpolate(logits, (6, 5), mode="bilinear", align_corners=corners)
        expected = F.interpolate(through, (7, 9), mode="bilinear", align_corners=corners).argmax(1)
        classes = UpsampleArgmax((7, 9), (6, 5), align_corners=corners)(logits)
        assert torch.equal(classes.long(), expected)


def test_the_fusion_is_that_of_its_definition():
    """Linear, resize, concatenation from the smallest level on, 1x1 convolution."""
    sizes, channels = [(8, 12), (4, 6), (3, 2)], (4, 5, 6)
    for corners in (False, True):
        fusion = FusePyramid(channels, 7, align_corners=corners).double()
        levels = [
            torch.randn(2, count, *size, dtype=torch.float64, requires_grad=True)
            for count, size in zip(channels, sizes, strict=True)
        ]
        embedded = [
            F.interpolate(
                linear(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                sizes[0],
                mode="bilinear",
                align_corners=corners,
            )
            for level, linear in zip(levels, fusion.level_projections, strict=True)
        ]
        expected = fusion.mix(torch.cat(embedded[::-1], 1))
        leaves = [*levels, *fusion.parameters()]
        cotangent = torch.randn_like(expected)
        torch.testing.assert_close(fusion(levels), expected)
        have = torch.autograd.grad(fusion(levels), leaves, cotangent)
        want = torch.autograd.grad(expected, leaves, cotangent)
        for gradient, exact in zip(have, want, strict=True):
            torch.testing.assert_close(gradient, exact)
