"""Photometric distortion of 8-bit images, rounded as the published training pipeline rounds.

The colour model is the 8-bit HSV of image libraries: saturation and value in 0..255, the hue in
0..179 with a unit of two degrees.
"""

from __future__ import annotations

from collections.abc import Callable
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
    return _change_hsv(image, lambda hue, saturation: (hue, cut_down(saturation * factor).float()))


def shift_hue(image: Tensor, steps: int) -> Tensor:
    """Shifts the 8-bit hue of an image, (3, H, W) uint8 RGB, by steps of two degrees."""
    return _change_hsv(image, lambda hue, saturation: ((hue + steps) % _HUES, saturation))


def _change_hsv(image: Tensor, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Applies a change of (hue, saturation), whole numbers in float32, at an unchanged value."""
    rgb = image.int()
    red, green, blue = rgb
    value = rgb.amax(dim=0)
    spread = value - rgb.amin(dim=0)
    # In the sector of the largest channel, the hue is between its two neighbours: 60 degrees each.
    sector = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = _divide(sector, spread, _HUES // 6) % _HUES
    saturation = _divide(spread, value, 255)
    hue, saturation = change(hue.float(), saturation.float())
    # Each channel falls from the value by the saturation, from 60 to 120 degrees off its own hue.
    position = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + hue * (6 / _HUES)) % 6
    fall = torch.minimum(position, 4 - position).clamp(0, 1)
    return cut_down(value * (1 - saturation / 255 * fall))


_FRACTION_BITS = 12


def _divide(numerator: Tensor, divisor: Tensor, scale: int) -> Tensor:
    """Computes scale * numerator / divisor, rounded, in the fixed-point numbers of OpenCV.

    Args:
        numerator: int32.
        divisor: int32 in 0..255; the result is 0 where it is 0.
        scale: A whole number.
    """
    one = scale << _FRACTION_BITS
    reciprocals = [0] + [(2 * one + i) // (2 * i) for i in range(1, 256)]
    half = 1 << (_FRACTION_BITS - 1)
    return (numerator * torch.tensor(reciprocals, dtype=torch.int32)[divisor] + half) >> (
        _FRACTION_BITS
    )


__all__ = ["PhotometricDistortion", "scale_saturation", "shift_hue"]
