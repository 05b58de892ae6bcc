"""Augmentation and resizing against plain definitions: enumeration, encoded positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from vss_models.data.transforms import (
    EvaluationTransform,
    TrainTransform,
    denormalise,
    keep_ratio_size,
    normalise,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(height: int, width: int, frames: int = 2) -> torch.Tensor:
    """Returns a clip whose red is the row and whose green is the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    return image.expand(frames, 3, height, width).contiguous()


def only_crop(**settings) -> TrainTransform:
    """Returns the augmentation without scaling, flip and colours."""
    defaults = {"ratio_range": (1.0, 1.0), "flip": 0.0, "photometric": None}
    return TrainTransform(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 853), (480, 853)),
        ((720, 1280), (480, 853)),
        ((360, 480), (480, 640)),
        ((1280, 720), (853, 480)),
        ((480, 2000), (205, 853)),
        ((1, 5000), (1, 853)),
    ],
)
def test_keep_ratio_size(size, expected):
    assert keep_ratio_size(size, 853, 480) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 853), (480, 864)), ((360, 480), (480, 640)), ((1080, 1920), (480, 864))],
)
def test_evaluation_size_divides_by_32(size, expected):
    assert EvaluationTransform().output_size(size) == expected
    clip = torch.zeros(2, 3, *size, dtype=torch.uint8)
    assert EvaluationTransform()(clip).shape == (2, 3, *expected)


@pytest.mark.parametrize(("size", "fitted"), [((72, 128), (48, 85)), ((48, 86), (47, 85))])
def test_evaluation_resizes_twice(size, fitted):
    clip = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=seeded())
    transform = EvaluationTransform(scale=(85, 48), divisor=32)

    def resize(frames: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
        return functional.resize(frames, list(to), antialias=False)

    expected = resize(resize(clip, fitted), (64, 96))
    assert torch.equal(denormalise(transform(clip)), expected)
    assert not torch.equal(expected, resize(clip, (64, 96)))


def test_evaluation_without_scaling_keeps_pixels():
    clip = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    result = EvaluationTransform(scale=None)(clip)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(result, (clip / 255 - mean) / std)
    assert torch.equal(denormalise(result), clip)


def test_train_output_is_padded_with_zero_and_ignored():
    clip = torch.full((3, 3, 40, 60), 200, dtype=torch.uint8)
    labels = torch.full((3, 40, 60), 7, dtype=torch.uint8)
    transform = only_crop(scale=(60, 40), crop=(64, 96))
    values, result = transform(clip, labels, seeded())
    assert values.shape == (3, 3, 64, 96)
    assert values.dtype == torch.float32
    assert result.dtype == torch.uint8
    inside = torch.zeros(64, 96, dtype=torch.bool)
    inside[:40, :60] = True
    assert (result == torch.where(inside, 7, 255)).all()
    expected = normalise(torch.full((3, 1, 1), 200 / 255))
    torch.testing.assert_close(values, (expected * inside).expand(3, 3, 64, 96))


def test_scale_is_uniform_in_the_range_and_shared():
    transform = TrainTransform(scale=(80, 60), crop=(128, 192), flip=0.0, photometric=None)
    clip = positions(60, 80)
    labels = torch.zeros(2, 60, 80, dtype=torch.uint8)
    generator = seeded()
    heights = []
    for _ in range(300):
        values, result = transform(clip, labels, generator)
        assert torch.equal(values[0], values[1])
        size = ((result[0, :, 0] == 0).sum().item(), (result[0, 0] == 0).sum().item())
        heights.append(size[0])
        assert abs(size[1] - size[0] * 80 / 60) <= 1.5
    assert min(heights) in (30, 31)
    assert max(heights) in (119, 120)
    # Uniform in 0.5..2 with mean 1.25 and deviation 1.5/sqrt(12).
    assert abs(np.mean(heights) / 60 - 1.25) < 4 * (1.5 / 12**0.5) / 300**0.5


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_labels_follow_the_image(factor, flip):
    # Blocks of constant colour: away from their edges, label and image must tell the same block.
    blocks = torch.arange(24).view(4, 6).repeat_interleave(16, 0).repeat_interleave(16, 1)
    labels = blocks.to(torch.uint8).expand(2, 64, 96).contiguous()
    clip = (labels * 10)[:, None].expand(2, 3, 64, 96).contiguous()
    transform = TrainTransform(
        scale=(96, 64), ratio_range=(factor, factor), crop=(32, 48), flip=flip, photometric=None
    )
    for seed in range(5):
        values, result = transform(clip, labels, seeded(seed))
        shown = denormalise(values)[:, 0].float() / 10
        agrees = (shown - result.float()).abs() < 0.06
        inner = torch.zeros_like(agrees)
        window = result.unfold(1, 3, 1).unfold(2, 3, 1)
        inner[:, 1:-1, 1:-1] = (window == result[:, 1:-1, 1:-1, None, None]).all(-1).all(-1)
        assert inner.float().mean() > 0.3
        assert agrees[inner].all()


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.5, 2.0])
def test_positions_of_labels_are_rounded_down(factor):
    labels = torch.arange(96, dtype=torch.uint8).expand(1, 96, 96).contiguous()
    size = int(96 * factor)
    transform = only_crop(scale=(96, 96), ratio_range=(factor, factor), crop=(size, size))
    _, result = transform(positions(96, 96, 1), labels, seeded())
    expected = [int(column / factor) for column in range(size)]
    assert result[0, 0].tolist() == expected


def test_scaled_bounds_are_cut_down_before_the_ratio_is_kept():
    # 95 * 0.7 = 66.5 and 40 * 0.7 = 28: a frame of 40 x 95 fits 66 x 28 as 28 x 66, not as 28 x 67.
    transform = only_crop(scale=(95, 40), ratio_range=(0.7, 0.7), crop=(40, 96))
    labels = torch.zeros(1, 40, 95, dtype=torch.uint8)
    _, result = transform(positions(40, 95, 1), labels, seeded())
    assert int((result[0, 0] == 0).sum()) == 66


def test_flip_is_shared_and_has_probability_one_half():
    transform = only_crop(scale=(48, 48), crop=(48, 48), flip=0.5)
    clip = positions(48, 48)
    labels = torch.zeros(2, 48, 48, dtype=torch.uint8)
    generator = seeded()
    flipped = 0
    for _ in range(400):
        shown = denormalise(transform(clip, labels, generator)[0])
        if torch.equal(shown, clip.flip(-1)):
            flipped += 1
        else:
            assert torch.equal(shown, clip)
    assert abs(flipped - 200) < 4 * 10


def draw_origin(settings: dict, target: torch.Tensor, seed: int) -> tuple[int, int]:
    """Top and left of the crop that a transform takes, read off the encoded positions."""
    labels = torch.stack([torch.zeros_like(target), target])
    clip = positions(*target.shape)
    values, _ = only_crop(scale=(96, 96), crop=(32, 32), **settings)(clip, labels, seeded(seed))
    shown = denormalise(values)
    return int(shown[1, 0, 0, 0]), int(shown[1, 1, 0, 0])


def proposed_crops(target: torch.Tensor, seed: int) -> list[tuple[int, int]]:
    """Returns the crops that are drawn one after the other as long as none is good enough."""
    never_good = {"max_class_fraction": 1e-9}
    return [draw_origin({**never_good, "tries": tries}, target, seed) for tries in range(1, 12)]


def is_good(target: torch.Tensor, top: int, left: int) -> bool:
    crop = target[top : top + 32, left : left + 32].numpy()
    _, counts = np.unique(crop[crop != 255], return_counts=True)
    return len(counts) > 1 and counts.max() / counts.sum() < 0.75


@pytest.mark.parametrize("seed", range(12))
def test_crop_rule(seed):
    # Mostly class 3, some class 5 in a corner, ignored pixels that must not count.
    target = torch.full((96, 96), 3, dtype=torch.uint8)
    target[:40, :40] = 5
    target[::3] = 255
    proposals = proposed_crops(target, seed)
    expected = next((place for place in proposals if is_good(target, *place)), proposals[-1])
    assert draw_origin({}, target, seed) == expected
    assert all(0 <= edge <= 64 for place in proposals for edge in place)


def test_a_crop_of_one_class_and_one_of_exactly_the_fraction_are_drawn_again():
    # A class in every fourth row covers exactly a quarter of any crop of 32 rows.
    striped = torch.full((96, 96), 3, dtype=torch.uint8)
    striped[::4] = 5
    for target in (striped, torch.full((96, 96), 3, dtype=torch.uint8)):
        for seed in range(4):
            assert draw_origin({}, target, seed) == proposed_crops(target, seed)[10]
            first = proposed_crops(target, seed)[0]
            assert draw_origin({"max_class_fraction": 1.0}, target, seed) == first
    for seed in range(4):
        assert (
            draw_origin({"max_class_fraction": 0.76}, striped, seed)
            == (proposed_crops(striped, seed)[0])
        )


def test_crop_rule_is_seen_at_work():
    target = torch.full((96, 96), 3, dtype=torch.uint8)
    target[:, 48:] = 5
    largest = []
    for seed in range(30):
        _, left = draw_origin({"tries": 200}, target, seed)
        largest.append(max(48 - left, left + 32 - 48) / 32)
    assert max(largest) < 0.75
    lone = [draw_origin({"tries": 1}, target, seed)[1] for seed in range(30)]
    assert any(max(48 - left, left - 16) / 32 > 0.75 for left in lone)


def test_an_unlabelled_target_is_no_error():
    target = torch.full((96, 96), 255, dtype=torch.uint8)
    draw_origin({}, target, 0)


def test_same_generator_same_result():
    clip = torch.randint(0, 256, (4, 3, 50, 70), dtype=torch.uint8)
    labels = torch.randint(0, 5, (4, 50, 70), dtype=torch.uint8)
    transform = TrainTransform(scale=(70, 50), crop=(48, 48))
    first, second, other = (transform(clip, labels, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_colours_are_distorted_frame_by_frame():
    clip = torch.full((4, 3, 48, 48), 120, dtype=torch.uint8)
    clip[:, 0] = 180
    labels = torch.zeros(4, 48, 48, dtype=torch.uint8)
    transform = TrainTransform(scale=(48, 48), ratio_range=(1.0, 1.0), crop=(48, 48))
    colours = denormalise(transform(clip, labels, seeded(1))[0])[:, :, 0, 0]
    assert len({tuple(colour.tolist()) for colour in colours}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainTransform(scale=(0, 480)), "scale"),
        (lambda: TrainTransform(crop=(0, 480)), "crop"),
        (lambda: TrainTransform(ratio_range=(2.0, 0.5)), "ratio_range"),
        (lambda: TrainTransform(tries=0), "tries"),
        (lambda: TrainTransform(max_class_fraction=0.0), "max_class_fraction"),
        (lambda: EvaluationTransform(scale=(-1, 5)), "scale"),
        (lambda: EvaluationTransform(divisor=0), "divisor"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
