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
from vss_models.data.photometric import PhotometricDistortion, coin, uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def keep_ratio_size(size: tuple[int, int], long_edge: float, short_edge: float) -> tuple[int, int]:
    """Computes the largest size of the same ratio whose sides fit two bounds.

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
    """Subtracts ImageNet's mean and divides by its deviation: float (..., 3, H, W) in 0..1."""
    return F.normalize(clip, list(IMAGENET_MEAN), list(IMAGENET_STD))


def denormalise(clip: torch.Tensor) -> torch.Tensor:
    """Undoes :func:`normalise`: normalised float (..., 3, H, W) to uint8, for showing."""
    mean = torch.tensor(IMAGENET_MEAN, device=clip.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=clip.device)[:, None, None]
    return ((clip.float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def _resize(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    # Plain bilinear, as in the published recipe: released weights have only seen such images.
    return F.resize(clip, list(size), interpolation=InterpolationMode.BILINEAR, antialias=False)


def _check_edges(name: str, edges: tuple[int, int]) -> None:
    if len(edges) != 2 or min(edges) < 1:
        raise ValueError(f"{name} must be two numbers of at least 1, got {tuple(edges)}")


@dataclass(frozen=True)
class TrainTransform:
    """The published training augmentation, the same for all frames of a clip but for the colours.

    Scale (keeping the ratio), crop, flip, photometric distortion drawn per frame, normalise, pad.

    Attributes:
        scale: (long edge, short edge) in pixels that the frame is fitted into at factor 1.
        ratio_range: Range of the factor on `scale`; the product is cut down to whole pixels.
        crop: (height, width) of the result.
        max_class_fraction: A crop is drawn again unless it has several classes, of which the
            largest covers less than this fraction of the target's labelled pixels. 1 takes the
            first crop.
        tries: Number of crops drawn at most; the last one is used as it is.
        flip: Probability of a horizontal flip.
        photometric: Distortion of colours; None for none.
    """

    scale: tuple[int, int] = (853, 480)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (480, 480)
    max_class_fraction: float = 0.75
    tries: int = 11
    flip: float = 0.5
    photometric: PhotometricDistortion | None = PhotometricDistortion()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        _check_edges("scale", self.scale)
        _check_edges("crop", self.crop)
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(f"ratio_range must be (low, high) above 0, got {self.ratio_range}")
        if self.tries < 1 or not 0 < self.max_class_fraction <= 1 or not 0 <= self.flip <= 1:
            raise ValueError(
                "tries must be at least 1, max_class_fraction in (0, 1] and flip in [0, 1], got "
                f"{self.tries}, {self.max_class_fraction} and {self.flip}"
            )

    def __call__(
        self, clip: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augments one clip.

        Args:
            clip: (T, 3, H, W) uint8, the target last.
            labels: (T, H, W) uint8, 255 where ignored.
            generator: Source of all randomness.

        Returns:
            The clip (T, 3, h, w) float32, normalised and padded with 0, and its labels (T, h, w)
            uint8, padded with 255, with (h, w) the crop size.
        """
        height, width = clip.shape[-2:]
        factor = uniform(*self.ratio_range, generator)
        long_edge, short_edge = (max(1, int(edge * factor)) for edge in self.scale)
        size = keep_ratio_size((height, width), long_edge, short_edge)
        clip = _resize(clip, size)
        # The published rule rounds positions down, half a pixel off the bilinear resize.
        labels = F.resize(labels, list(size), interpolation=InterpolationMode.NEAREST)

        top, left = self._draw_crop(labels[-1], generator)
        crop_size = [min(self.crop[0], size[0]), min(self.crop[1], size[1])]
        clip = F.crop(clip, top, left, *crop_size)
        labels = F.crop(labels, top, left, *crop_size)
        if coin(self.flip, generator):
            clip, labels = F.horizontal_flip(clip), F.horizontal_flip(labels)

        if self.photometric is not None:
            clip = torch.stack([self.photometric(frame, generator) for frame in clip])
        values = F.to_dtype(clip, torch.float32, scale=True)
        padding = [0, 0, self.crop[1] - crop_size[1], self.crop[0] - crop_size[0]]
        values = F.pad(normalise(values), padding, fill=0.0)
        return values.contiguous(), F.pad(labels, padding, fill=IGNORED).contiguous()

    def _draw_crop(self, target: torch.Tensor, generator: torch.Generator) -> tuple[int, int]:
        """Draws top and left of a crop in which no class covers too much of the target."""
        crop_height, crop_width = self.crop
        free_rows = max(target.shape[0] - crop_height, 0)
        free_columns = max(target.shape[1] - crop_width, 0)
        top = left = 0
        for _ in range(self.tries):
            top = int(torch.randint(0, free_rows + 1, (), generator=generator))
            left = int(torch.randint(0, free_columns + 1, (), generator=generator))
            if self._is_mixed(target[top : top + crop_height, left : left + crop_width]):
                break
        return top, left

    def _is_mixed(self, crop: torch.Tensor) -> bool:
        """Tells whether a crop (h, w) of labels holds several classes, none of them too large."""
        if self.max_class_fraction == 1:
            return True
        counts = torch.bincount(crop.flatten(), minlength=256)[:IGNORED]
        several = int((counts > 0).sum()) > 1
        return several and int(counts.max()) < self.max_class_fraction * int(counts.sum())


@dataclass(frozen=True)
class EvaluationTransform:
    """Test-time resize: keep the ratio, then stretch so that both sides divide by a number.

    These are two resizes, one after the other, each to 8 bits, as in the published evaluation.

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
        height, width = (-(-edge // self.divisor) * self.divisor for edge in self.fitted_size(size))
        return height, width

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """Resizes and normalises: (..., 3, H, W) uint8 to (..., 3, h, w) float32."""
        size = (clip.shape[-2], clip.shape[-1])
        resized = _resize(_resize(clip, self.fitted_size(size)), self.output_size(size))
        return normalise(F.to_dtype(resized, torch.float32, scale=True))

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size (height, width) that a frame of `size` has between the two resizes."""
        return size if self.scale is None else keep_ratio_size(size, *self.scale)
