"""Photometric distortion against OpenCV's recorded answers, colorsys and its distributions."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor

from vss_models.data.photometric import PhotometricDistortion, scale_saturation, shift_hue

STILL = PhotometricDistortion(0.0, (1.0, 1.0), (1.0, 1.0), 0, 1.0)

# fmt: off
COLOURS = (
    (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 120, 40), (17, 90, 203), (3, 1, 2),
    (250, 10, 10), (10, 250, 240), (90, 91, 92), (64, 128, 32), (180, 60, 179), (255, 254, 0),
)
OPENCV_HUE = {
    -18: (
        (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 40, 56), (17, 203, 203), (3, 1, 3),
        (250, 10, 154), (10, 250, 98), (90, 92, 92), (122, 128, 32), (108, 60, 180), (255, 102, 0),
    ),
    17: (
        (0, 0, 0), (255, 255, 255), (128, 128, 128), (189, 200, 40), (48, 17, 203), (3, 1, 1),
        (250, 146, 10), (10, 122, 250), (90, 90, 92), (32, 128, 54), (180, 60, 112), (110, 255, 0),
    ),
}
OPENCV_SATURATION = {
    0.5: (
        (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 160, 120), (110, 147, 203), (3, 2, 2),
        (250, 130, 130), (130, 250, 246), (91, 91, 92), (96, 128, 80), (180, 120, 180),
        (255, 255, 128),
    ),
    1.5: (
        (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 100, 0), (0, 81, 203), (3, 0, 1),
        (250, 0, 0), (0, 250, 242), (89, 90, 92), (43, 128, 0), (180, 0, 180), (255, 255, 0),
    ),
}
"""What OpenCV 4.5.5 makes of the colours: to 8-bit HSV, changed, cut down to uint8, and back."""
# fmt: on


def as_image(colours: tuple[tuple[int, int, int], ...]) -> Tensor:
    return torch.tensor(colours, dtype=torch.uint8).T.reshape(3, 1, -1)


def assert_within_a_step(changed: Tensor, expected: Tensor) -> None:
    """Where the exact value is a whole number, rounding may fall to either side of it."""
    assert changed.dtype == torch.uint8
    assert (changed.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("steps", OPENCV_HUE)
def test_hue_is_shifted_as_in_opencv(steps):
    changed = shift_hue(as_image(COLOURS), steps)
    assert_within_a_step(changed, as_image(OPENCV_HUE[steps]))


@pytest.mark.parametrize("factor", OPENCV_SATURATION)
def test_saturation_is_scaled_as_in_opencv(factor):
    changed = scale_saturation(as_image(COLOURS), factor)
    assert_within_a_step(changed, as_image(OPENCV_SATURATION[factor]))


@pytest.mark.parametrize("steps", [-90, -18, 0, 17, 90])
def test_a_step_of_hue_is_two_degrees(steps):
    image = torch.randint(0, 256, (3, 8, 8), generator=seeded()).to(torch.uint8)
    image[0] = 255
    image[2] = 0
    changed = shift_hue(image, steps)
    for before, after in zip(image.flatten(1).T, changed.flatten(1).T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255).tolist())
        expected = colorsys.hsv_to_rgb((hue + steps / 180) % 1, saturation, value)
        # A hue of 8 bits is off by at most a degree, 1/60 of the way from channel to channel.
        tolerance = 255 * saturation / 60 + 1.5
        assert (after / 1).tolist() == pytest.approx([255 * c for c in expected], abs=tolerance)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distort(generator: torch.Generator, image: Tensor, **settings: object) -> Tensor:
    still = {name: getattr(STILL, name) for name in STILL.__dataclass_fields__}
    return PhotometricDistortion(**{**still, **settings})(image, generator)


def pixel(red: int, green: int, blue: int) -> Tensor:
    return as_image(((red, green, blue),))


def test_values_are_cut_down_not_rounded():
    greys = (100, 250, 51, 3)
    image = as_image(tuple((grey, grey, grey) for grey in greys))
    changed = distort(seeded(), image, contrast=(0.51, 0.51))
    assert changed[0].flatten().tolist() == [int(grey * 0.51) for grey in greys]
    for seed in range(20):
        shift = 64 * float(torch.rand(2, generator=seeded(seed))[1]) - 32
        changed = distort(seeded(seed), image, brightness=32.0)
        expected = [int(min(max(grey + shift, 0), 255)) for grey in greys]
        assert changed[0].flatten().tolist() == expected


def test_hue_takes_every_even_number_of_degrees_and_no_other():
    # Pure red shifted by n degrees: green (n > 0) or blue (n < 0) rises by |n| / 60.
    generator = seeded()
    seen = set()
    for _ in range(2000):
        red, green, blue = distort(generator, pixel(255, 0, 0), hue=36).flatten().tolist()
        assert red == 255
        seen.add(round((green - blue) / 255 * 60))
    assert seen == set(range(-36, 36, 2))


def test_each_distortion_has_its_range():
    generator = seeded()
    shifts, contrasts, saturations = [], [], []
    for _ in range(300):
        shifts.append(int(distort(generator, pixel(128, 0, 0), brightness=32.0)[0]) - 128)
        contrasts.append(int(distort(generator, pixel(160, 0, 0), contrast=(0.5, 1.5))[0]) / 160)
        changed = distort(generator, pixel(200, 100, 100), saturation=(0.5, 1.5))
        saturations.append((200 - int(changed[1])) / 100)
    for drawn, low, high, step in (
        (shifts, -32, 32, 1),
        (contrasts, 0.5, 1.5, 1 / 160),
        (saturations, 0.5, 1.5, 2 / 100),
    ):
        assert low - step <= min(drawn) < low + 0.04 * (high - low)
        assert high - 0.04 * (high - low) < max(drawn) <= high + step


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 32.0},
        {"contrast": (0.5, 0.6)},
        {"saturation": (0.5, 0.6)},
        {"hue": 36},
    ],
)
def test_each_distortion_has_probability_one_half(settings):
    image = pixel(200, 0, 0)  # the same after conversion to 8-bit HSV and back
    generator = seeded()
    changed = sum(
        not torch.equal(distort(generator, image, probability=0.5, **settings), image)
        for _ in range(400)
    )
    # Every 36th shift of the hue and every 64th one of the brightness is none.
    assert 200 * 35 / 36 - 4 * 10 < changed < 200 + 4 * 10


def test_contrast_comes_before_or_after_saturation():
    image = pixel(204, 178, 0)
    generator = seeded()
    blues = [
        int(distort(generator, image, contrast=(1.5, 1.5), saturation=(0.5, 0.5))[2])
        for _ in range(400)
    ]
    before = sum(abs(blue - 127) <= 1 for blue in blues)
    after = sum(abs(blue - 153) <= 2 for blue in blues)
    assert before + after == 400
    assert abs(before - 200) < 4 * 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrast": (1.5, 0.5)}, "contrast must be a range"),
        ({"saturation": (-1.0, 0.5)}, "saturation must be a range"),
        ({"hue": 200}, "hue must be an even number of degrees from 0 to 180, got 200"),
        ({"hue": 35}, "hue must be an even number of degrees"),
        ({"probability": 1.5}, "probability 0..1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PhotometricDistortion(**settings)


def test_floating_point_images_are_refused():
    with pytest.raises(TypeError, match="image must be uint8 RGB"):
        STILL(torch.rand(3, 4, 4), seeded())
