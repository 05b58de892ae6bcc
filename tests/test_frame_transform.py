"""The transform of frames on any device: the bits of the one that evaluation uses on a CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vss_models.data import EvaluationTransform
from vss_models.inference.frame_transform import transform_frames, transform_tables

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="PyTorch resizes 8-bit images in fixed point only with AVX2 or later",
)
SIDES = st.integers(1, 130)


def frames_of(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def assert_same_bits(transform: EvaluationTransform, frames: torch.Tensor, device: str) -> None:
    tables = transform_tables(transform, (frames.shape[1], frames.shape[2]), torch.device(device))
    images = transform_frames(frames.to(device), tables)
    expected = transform(frames.permute(0, 3, 1, 2))
    assert images.is_contiguous()
    assert torch.equal(images.cpu(), expected)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 2),
    size=st.tuples(SIDES, SIDES),
    scale=st.none() | st.tuples(SIDES, SIDES),
    divisor=st.sampled_from([1, 8, 32]),
)
def test_any_size_has_the_same_bits(batch, size, scale, divisor):
    """Enlarged and reduced, along one axis, both or none, twice."""
    assert_same_bits(EvaluationTransform(scale, divisor), frames_of(batch, *size), "cpu")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(480, 853), (720, 1280), (1080, 1920), (853, 480)])
def test_the_usual_sizes_have_the_same_bits(size, device):
    assert_same_bits(EvaluationTransform(), frames_of(1, *size), device)


def test_frames_of_the_right_size_are_only_normalised():
    tables = transform_tables(EvaluationTransform((96, 64)), (64, 96))
    assert tables.passes == ()
    assert len(transform_tables(EvaluationTransform(), (480, 853)).passes) == 1
