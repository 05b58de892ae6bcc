"""fuse_pyramid as a registered operator: fakes and the backends' conditions.

The schemas stand in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels and the
gradient (``csrc/fuse_pyramid/autograd.cpp``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.fuse_pyramid import eager

MAX_LEVELS = 8
"""As ``kMaxLevels`` in ``csrc/fuse_pyramid/kernel.h``."""

# The backward kernel tabulates the taps of a whole row and column in shared memory.
_MAX_SIDES = 8192


def _native_can_run(first: Tensor, others: Sequence[Tensor], align_corners: bool) -> str | None:
    reason = native.refuses(first)
    if reason is not None:
        return reason
    if 1 + len(others) > MAX_LEVELS:
        return f"it takes up to {MAX_LEVELS} levels, not {1 + len(others)}"
    rows, columns = first.shape[2:]
    if first.device.type == "cuda" and rows + columns > _MAX_SIDES:
        return f"on a GPU it takes up to {_MAX_SIDES} rows and columns together"
    return None


def _run_native(first: Tensor, others: Sequence[Tensor], align_corners: bool) -> Tensor:
    return torch.ops.vss_kernels.fuse_pyramid([first, *others], align_corners)


def _fake(levels: Sequence[Tensor], align_corners: bool) -> Tensor:
    return levels[0].new_empty(levels[0].shape)


def _fake_backward(grad: Tensor, sizes: Sequence[int], align_corners: bool) -> list[Tensor]:
    return [
        grad.new_empty(*grad.shape[:2], rows, columns)
        for rows, columns in zip(sizes[::2], sizes[1::2], strict=True)
    ]


if native.problem() is None:
    torch.library.register_fake("vss_kernels::fuse_pyramid", _fake)
    torch.library.register_fake("vss_kernels::fuse_pyramid_backward", _fake_backward)

operator = Operator(
    "fuse_pyramid",
    [
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.fuse_pyramid), always, always),
    ],
)
