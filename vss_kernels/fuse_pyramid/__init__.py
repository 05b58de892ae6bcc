"""fuse_pyramid: upsample the levels of a feature pyramid to the first and add them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels._runtime.checks import (
    check_flag,
    check_same_kind,
    check_shape,
    check_tensor,
    describe,
)
from vss_kernels.fuse_pyramid.op import operator

__all__ = ["fuse_pyramid"]

_NAME = "fuse_pyramid"


def fuse_pyramid(levels: Sequence[Tensor], *, align_corners: bool = False) -> Tensor:
    """Adds the levels of a feature pyramid at the size of the first.

    Every other level is resized bilinearly. Since a linear map commutes with the resize, this is
    all that remains of SegFormer's all-MLP fusion (Xie et al., NeurIPS 2021) once each level was
    projected at its own size.

    Args:
        levels: Maps of shape (N, E, h_i, w_i), the largest first; float32, float16, bfloat16 or
            float64, all of one dtype, any strides.
        align_corners: Whether the centres of the corner pixels, not their corners, coincide in the
            resizes, as in ``torch.nn.functional.interpolate``.

    Returns:
        Tensor of shape (N, E, h, w) of the first level, contiguous, same dtype. Sums are
        accumulated in float32 (float64 for float64).

    Raises:
        TypeError: A level is no tensor, or the dtypes are unsupported or differ.
        ValueError: There are no levels, batch or channels differ, a level is empty or larger than
            the first, or the devices differ.

    Example:
        >>> levels = [torch.zeros(1, 1, 2, 4), torch.tensor([[[[0.0, 4.0]]]])]
        >>> vss_kernels.fuse_pyramid(levels)
        tensor([[[[0., 1., 3., 4.],
                  [0., 1., 3., 4.]]]])
        >>> vss_kernels.fuse_pyramid(levels, align_corners=True)[0, 0, 0]
        tensor([0.0000, 1.3333, 2.6667, 4.0000])
    """
    if not isinstance(levels, Sequence):
        raise TypeError(f"{_NAME}: levels must be a sequence of maps, got {describe(levels)}")
    check_flag(_NAME, "align_corners", align_corners)
    if len(levels) == 0:
        raise ValueError(f"{_NAME}: levels must hold at least one map, got none")
    for position, level in enumerate(levels):
        check_tensor(_NAME, f"levels[{position}]", level, "N,E,h,w")
    levels = cast_inputs(*levels)
    check_same_kind(
        _NAME, **{f"levels[{position}]": level for position, level in enumerate(levels)}
    )
    batch, channels, height, width = levels[0].shape
    for position, level in enumerate(levels):
        check_shape(_NAME, f"levels[{position}]", level, (batch, channels, None, None))
        rows, columns = level.shape[2:]
        if not (1 <= rows <= height and 1 <= columns <= width):
            raise ValueError(
                f"{_NAME}: levels[{position}] must have between 1 and {height} rows and between 1 "
                f"and {width} columns, as the first level has, got {rows} x {columns}"
            )
    return operator(levels[0], tuple(levels[1:]), align_corners)
