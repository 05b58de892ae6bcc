"""Photometric distortion of 8-bit images, rounded as the published training pipeline rounds.

The colour model is the 8-bit HSV of image libraries: saturation and value in 0..255, the hue in
0..179 with a unit of two degrees.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

HUE_UNIT = 2
"""Degrees in one step of an 8-bit hue."""

_HUES = 360 // HUE_UNIT


@dataclass(frozen=True)
class PhotometricDistortion:
    """Random brightness, contrast, saturation and hue of one image, each with probability 0.5.

    The order is brightness, contrast, saturation, hue, or with probability 0.5 contrast comes last
    (Liu et al., "SSD", 2016, section on data augmentation). After each distortion the values are
    cut down to whole numbers.

    Attributes:
        brightness: Largest shift, in steps of 1/255.
        contrast: Range of the factor on all values.
        saturation: Range of the factor on the saturation of HSV.
        hue: Largest shift of the hue in degrees, even. Drawn is a whole number of steps of two
            degrees, from -hue up to but without hue.
        probability: Probability of each of the four.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 36
    probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be a range (low, high) from 0 up, got {(low, high)}")
        if self.brightness < 0 or not 0 <= self.probability <= 1:
            raise ValueError(
                "brightness must be at least 0 and probability 0..1, got "
                f"{self.brightness} and {self.probability}"
            )
        if not 0 <= self.hue <= 180 or self.hue % HUE_UNIT:
            raise ValueError(
                f"hue must be an even number of degrees from 0 to 180, got {self.hue}: an 8-bit "
                f"hue has steps of {HUE_UNIT} degrees"
            )

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Distorts one image.

        Args:
            image: (3, H, W) uint8 RGB.
            generator: Source of all randomness.

        Returns:
            The distorted image, (3, H, W) uint8.

        Raises:
            TypeError: If the image is not uint8.
        """
        if image.dtype != torch.uint8:
            raise TypeError(f"image must be uint8 RGB (3, H, W), got {image.dtype}")
        if self._happens(generator):
            shift = uniform(-self.brightness, self.brightness, generator)
            image = cut_down(image + shift)
        contrast_last = coin(0.5, generator)
        if not contrast_last:
            image = self._change_contrast(image, generator)
        if self._happens(generator):
            image = scale_saturation(image, uniform(*self.saturation, generator))
        if self._happens(generator):
            image = shift_hue(image, self._draw_hue_steps(generator))
        if contrast_last:
            image = self._change_contrast(image, generator)
        return image

    def _happens(self, generator: torch.Generator) -> bool:
        return coin(self.probability, generator)

    def _draw_hue_steps(self, generator: torch.Generator) -> int:
        largest = self.hue // HUE_UNIT
        if largest == 0:
            return 0
        return int(torch.randint(-largest, largest, (), generator=generator))

    def _change_contrast(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if not self._happens(generator):
            return image
        return cut_down(image * uniform(*self.contrast, generator))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draws a number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def coin(probability: float, generator: torch.Generator) -> bool:
    """Draws whether something of that probability happens."""
    return float(torch.rand((), generator=generator)) < probability


def cut_down(values: Tensor) -> Tensor:
    """Turns values into uint8: limited to 0..255, fractions cut off."""
    return values.clamp(0, 255).to(torch.uint8)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies the 8-bit saturation of an image, (3, H, W) uint8 RGB, by a factor from 0 up."""
    value, hue, saturation = _to_hsv(image)
    return _to_rgb(value, hue, (saturation * factor).clamp_(0, 255).trunc_())


def shift_hue(image: Tensor, steps: int) -> Tensor:
    """Shifts the 8-bit hue of an image, (3, H, W) uint8 RGB, by steps of two degrees."""
    value, hue, saturation = _to_hsv(image)
    return _to_rgb(value, _wrapped(hue + (steps % _HUES - _HUES)), saturation)


def _to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns value and hue (int32), and saturation (whole numbers in float32) of uint8 RGB."""
    red, green, blue = image.int()
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    # In the sector of the largest channel, the hue is between its two neighbours: 60 degrees each.
    of_green, of_blue = blue - red + 2 * spread, red - green + 4 * spread
    sector = _where_negative(green - value, of_blue, of_green)
    sector = _where_negative(red - value, sector, green - blue)
    return (
        value,
        _wrapped(_divide(sector, spread, _HUES // 6)),
        _divide(spread, value, 255).float(),
    )


def _to_rgb(value: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    # Each channel falls from the value by the saturation, from 60 to 120 degrees off its own hue.
    position = (hue.float() * (6 / _HUES) + _OFFSETS).sub_(5).abs_()
    fall = torch.minimum(position - 1, 5 - position).clamp_(0, 1)
    # From 0 to the value, so that nothing is left to limit.
    return fall.mul_(saturation / 255).neg_().add_(1).mul_(value.float()).to(torch.uint8)


_OFFSETS = torch.tensor([5.0, 3.0, 1.0])[:, None, None]

# Selections of whole numbers by their signs: `torch.where` and `%` take ten times as long.


def _where_negative(sign: Tensor, negative: Tensor, other: Tensor) -> Tensor:
    return other + ((negative - other) & (sign >> 31))


def _wrapped(hue: Tensor) -> Tensor:
    """Turns hues in -180..179, int32, into those of a whole turn from 0 up."""
    return hue + ((hue >> 31) & _HUES)


_FRACTION_BITS = 12


@functools.lru_cache
def _reciprocals(scale: int) -> Tensor:
    one = scale << _FRACTION_BITS
    return torch.tensor([0] + [(2 * one + i) // (2 * i) for i in range(1, 256)], dtype=torch.int32)


def _divide(numerator: Tensor, divisor: Tensor, scale: int) -> Tensor:
    """Computes scale * numerator / divisor, rounded, in the fixed-point numbers of OpenCV.

    Args:
        numerator: int32.
        divisor: int32 in 0..255; the result is 0 where it is 0.
        scale: A whole number.
    """
    reciprocals = _reciprocals(scale).index_select(0, divisor.flatten()).view_as(divisor)
    return (
        (numerator * reciprocals)
        .add_(1 << (_FRACTION_BITS - 1))
        .bitwise_right_shift_(_FRACTION_BITS)
    )


__all__ = ["PhotometricDistortion", "scale_saturation", "shift_hue"]
