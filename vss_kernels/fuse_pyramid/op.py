"""fuse_pyramid as a registered operator: fake, autograd and the backends' conditions.

The schema stands in
``csrc/library.cpp``; the extension provides the CPU and CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.autograd import forbid_second_derivative
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


def _setup_context(ctx: Any, inputs: tuple[Sequence[Tensor], bool], output: Tensor) -> None:
    levels, ctx.align_corners = inputs
    ctx.sizes = [tuple(level.shape[2:]) for level in levels]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None], None]:
    needs, _ = ctx.needs_input_grad
    grads: list[Tensor | None] = [grad if needs[0] else None, *(None for _ in needs[1:])]
    wanted = [position for position, needed in enumerate(needs) if needed and position > 0]
    if wanted:
        sizes = [size for position in wanted for size in ctx.sizes[position]]
        gathered = torch.ops.vss_kernels.fuse_pyramid_backward(grad, sizes, ctx.align_corners)
        for position, level_grad in zip(wanted, gathered, strict=True):
            grads[position] = level_grad
    return grads, None


if native.problem() is None:
    torch.library.register_fake("vss_kernels::fuse_pyramid", _fake)
    torch.library.register_fake("vss_kernels::fuse_pyramid_backward", _fake_backward)
    torch.library.register_autograd(
        "vss_kernels::fuse_pyramid", _backward, setup_context=_setup_context
    )
    forbid_second_derivative("fuse_pyramid")

operator = Operator(
    "fuse_pyramid",
    [
        Implementation("native", _run_native, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.fuse_pyramid), always, always),
    ],
)
