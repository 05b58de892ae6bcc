"""Resizing and augmentation of clips: the published training recipe and the test-time resize.

Clips are uint8 (T, 3, H, W) on the way in and float32, normalised with ImageNet's statistics, on
the way out; the last frame is the target. All randomness comes from the generator passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vss_models.data.classes import IGNORED

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def keep_ratio_size(size: tuple[int, int], long_edge: float, short_edge: float) -> tuple[int, int]:
    """Largest size of the same ratio whose longer and shorter sides fit the two bounds.

    Args:
        size: (height, width).
        long_edge: Bound of the longer side, in pixels.
        short_edge: Bound of the shorter side, in pixels.

    Returns:
        (height, width), each at least 1.
    """
    height, width = size
    factor = min(long_edge / max(size), short_edge / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def normalise(clip: torch.Tensor) -> torch.Tensor:
    """Subtract ImageNet's mean and divide by its deviation: float (..., 3, H, W) in 0..1."""
    return F.normalize(clip, list(IMAGENET_MEAN), list(IMAGENET_STD))


def denormalise(clip: torch.Tensor) -> torch.Tensor:
    """Undo :func:`normalise`: normalised float (..., 3, H, W) to uint8, for showing."""
    mean = torch.tensor(IMAGENET_MEAN, device=clip.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=clip.device)[:, None, None]
    return ((clip.float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def _resize(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    # Plain bilinear, as in the published recipe: released weights have only seen such images.
    return F.resize(clip, list(size), interpolation=InterpolationMode.BILINEAR, antialias=False)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _coin(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def _check_edges(name: str, edges: tuple[int, int]) -> None:
    if len(edges) != 2 or min(edges) < 1:
        raise ValueError(f"{name} must be two numbers of at least 1, got {tuple(edges)}")


@dataclass(frozen=True)
class PhotometricDistortion:
    """Random brightness, contrast, saturation and hue of one image, each with probability 0.5.

    The order is brightness, contrast, saturation, hue, or with probability 0.5 contrast comes last
    (Liu et al., "SSD", 2016, section on data augmentation).

    Attributes:
        brightness: Largest shift, in steps of 1/255.
        contrast: Range of the factor on all values.
        saturation: Range of the factor on the saturation of HSV.
        hue: Largest turn of the hue, in degrees.
        probability: Probability of each of the four.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be a range (low, high) from 0 up, got {(low, high)}")
        if self.brightness < 0 or not 0 <= self.hue <= 180 or not 0 <= self.probability <= 1:
            raise ValueError(
                "brightness must be at least 0, hue 0..180 degrees and probability 0..1, got "
                f"{self.brightness}, {self.hue} and {self.probability}"
            )

    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Distort one image (3, H, W), float in 0..1; returns the same shape and range."""
        if _coin(self.probability, generator):
            shift = _uniform(-self.brightness, self.brightness, generator) / 255
            image = (image + shift).clamp(0, 1)
        contrast_last = _coin(0.5, generator)
        if not contrast_last:
            image = self._change_contrast(image, generator)
        if _coin(self.probability, generator):
            image = scale_saturation(image, _uniform(*self.saturation, generator))
        if _coin(self.probability, generator):
            image = F.adjust_hue(image, _uniform(-self.hue, self.hue, generator) / 360)
        if contrast_last:
            image = self._change_contrast(image, generator)
        return image

    def _change_contrast(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if not _coin(self.probability, generator):
            return image
        return (image * _uniform(*self.contrast, generator)).clamp(0, 1)


def scale_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply the saturation of HSV, leaving hue and value as they are.

    With value V = max(r, g, b) and saturation S = (V - min) / V, each channel c becomes
    V - (V - c)·min(factor, 1/S): no conversion to HSV and back is needed.

    Args:
        image: (3, H, W) float in 0..1.
        factor: What to multiply by, at least 0; the result's saturation stops at 1.
    """
    value = image.amax(dim=0, keepdim=True)
    spread = value - image.amin(dim=0, keepdim=True)
    gain = torch.where(spread * factor > value, value / spread.clamp_min(1e-12), factor)
    return value - (value - image) * gain


@dataclass(frozen=True)
class TrainTransform:
    """The published training augmentation; all frames of a clip share everything but the colours.

    Scale (keeping the ratio), crop, flip, photometric distortion drawn per frame, normalise, pad.

    Attributes:
        scale: (long edge, short edge) in pixels that the frame is fitted into at factor 1.
        ratio_range: Range of the factor on `scale`.
        crop: (height, width) of the result.
        max_share: A crop whose largest class covers more than this share of the target's labelled
            pixels is drawn again.
        tries: Number of crops drawn at most; the last one is used if none is good.
        flip: Probability of a horizontal flip.
        photometric: Distortion of colours; None for none.
    """

    scale: tuple[int, int] = (853, 480)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (480, 480)
    max_share: float = 0.75
    tries: int = 10
    flip: float = 0.5
    photometric: PhotometricDistortion | None = PhotometricDistortion()

    def __post_init__(self) -> None:
        _check_edges("scale", self.scale)
        _check_edges("crop", self.crop)
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(f"ratio_range must be (low, high) above 0, got {self.ratio_range}")
        if self.tries < 1 or not 0 < self.max_share <= 1 or not 0 <= self.flip <= 1:
            raise ValueError(
                "tries must be at least 1, max_share in (0, 1] and flip in [0, 1], got "
                f"{self.tries}, {self.max_share} and {self.flip}"
            )

    def __call__(
        self, clip: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one clip.

        Args:
            clip: (T, 3, H, W) uint8, the target last.
            labels: (T, H, W) uint8, 255 where ignored.
            generator: Source of all randomness.

        Returns:
            The clip (T, 3, h, w) float32, normalised and padded with 0, and its labels (T, h, w)
            uint8, padded with 255, with (h, w) the crop size.
        """
        height, width = clip.shape[-2:]
        factor = _uniform(*self.ratio_range, generator)
        size = keep_ratio_size((height, width), self.scale[0] * factor, self.scale[1] * factor)
        clip = _resize(clip, size)
        # Pixel centres, as in the bilinear resize, so that labels do not shift against the image.
        labels = F.resize(labels, list(size), interpolation=InterpolationMode.NEAREST_EXACT)

        top, left = self._draw_crop(labels[-1], generator)
        crop_size = [min(self.crop[0], size[0]), min(self.crop[1], size[1])]
        clip = F.crop(clip, top, left, *crop_size)
        labels = F.crop(labels, top, left, *crop_size)
        if _coin(self.flip, generator):
            clip, labels = F.horizontal_flip(clip), F.horizontal_flip(labels)

        values = F.to_dtype(clip, torch.float32, scale=True)
        if self.photometric is not None:
            values = torch.stack([self.photometric(frame, generator) for frame in values])
        padding = [0, 0, self.crop[1] - crop_size[1], self.crop[0] - crop_size[0]]
        values = F.pad(normalise(values), padding, fill=0.0)
        return values.contiguous(), F.pad(labels, padding, fill=IGNORED).contiguous()

    def _draw_crop(self, target: torch.Tensor, generator: torch.Generator) -> tuple[int, int]:
        """Draw top and left of a crop in which no class covers too much of the target."""
        crop_height, crop_width = self.crop
        free_rows = max(target.shape[0] - crop_height, 0)
        free_columns = max(target.shape[1] - crop_width, 0)
        top = left = 0
        for _ in range(self.tries):
            top = int(torch.randint(0, free_rows + 1, (), generator=generator))
            left = int(torch.randint(0, free_columns + 1, (), generator=generator))
            crop = target[top : top + crop_height, left : left + crop_width]
            counts = torch.bincount(crop.flatten(), minlength=256)[:IGNORED]
            labelled = int(counts.sum())
            if labelled > 0 and int(counts.max()) <= self.max_share * labelled:
                break
        return top, left


@dataclass(frozen=True)
class EvaluationTransform:
    """Test-time resize: keep the ratio, then stretch so that both sides divide by a number.

    Attributes:
        scale: (long edge, short edge) in pixels that the frame is fitted into; None keeps its size.
        divisor: Both sides are stretched up to the next multiple of this.
    """

    scale: tuple[int, int] | None = (853, 480)
    divisor: int = 32

    def __post_init__(self) -> None:
        if self.scale is not None:
            _check_edges("scale", self.scale)
        if self.divisor < 1:
            raise ValueError(f"divisor must be at least 1, got {self.divisor}")

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size (height, width) that a frame of `size` comes out with: 480x853 gives 480x864."""
        if self.scale is not None:
            size = keep_ratio_size(size, *self.scale)
        height, width = (-(-edge // self.divisor) * self.divisor for edge in size)
        return height, width

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """Resize and normalise: (..., 3, H, W) uint8 to (..., 3, h, w) float32."""
        height, width = clip.shape[-2:]
        resized = _resize(clip, self.output_size((height, width)))
        return normalise(F.to_dtype(resized, torch.float32, scale=True))
