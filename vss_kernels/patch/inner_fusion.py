"""SegFormer's all-MLP fusion inside a longer head, as in released MRCFA and CFFM: fuse_pyramid.

There the fusion is a few lines of one long ``forward``, and no part of its own. So the forward runs
as it is, but the resizes of the embedded levels and their concatenation are deferred until the 1x1
convolution that takes them. It is then applied to each level at its own size, and fuse_pyramid
resizes and adds the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vss_kernels.nn.dense import fuse_projected
from vss_kernels.patch.deferred import Deferred, Upsampled, deferred
from vss_kernels.patch.fusion_heads import FUSION_HEADS, unlike_plain_convolution
from vss_kernels.patch.kinds import Kind, traced

_PARTS = {"linear_c1", "linear_c2", "linear_c3", "linear_c4", "linear_fuse"}


class _Join(torch.autograd.Function):
    """Gives a deferred concatenation its place in the graph."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.channels = [part.shape[1] for part in parts]
        return ConcatenatedLevels(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0].split(ctx.channels, 1)


class ConcatenatedLevels(Deferred):
    """Levels that stand for their concatenation over the channels.

    Args:
        parts: Maps (N, C_i, H, W) of one size, some of them :class:`UpsampledLevel`.
    """

    parts: Sequence[Tensor]

    @staticmethod
    def __new__(cls, parts: Sequence[Tensor]) -> ConcatenatedLevels:
        """Makes a tensor of the concatenation's shape that owns no memory."""
        first = parts[0]
        channels = sum(part.shape[1] for part in parts)
        self = Tensor._make_wrapper_subclass(
            cls,
            (first.shape[0], channels, *first.shape[2:]),
            dtype=first.dtype,
            device=first.device,
        )
        self.parts = parts
        self.dense = None
        return self

    def compute(self) -> Tensor:
        """Concatenates the levels at full size."""
        parts = [x.materialise() if isinstance(x, Deferred) else x for x in self.parts]
        return torch.cat(parts, 1)


def _concatenate(tensors: Any, dim: int = 0, *, out: Tensor | None = None) -> Tensor | None:
    levels = list(tensors)
    first = levels[0]
    alike = all(
        isinstance(x, Tensor)
        and x.dim() == 4
        and (x.shape[0], *x.shape[2:]) == (first.shape[0], *first.shape[2:])
        and (x.dtype, x.device) == (first.dtype, first.device)
        for x in levels
    )
    if out is not None or dim not in (1, -3) or not alike:
        return None
    joined = _Join.apply(*levels)
    joined.parts = levels
    return joined


def _convolve(
    input: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if (
        not isinstance(input, ConcatenatedLevels)
        or input.dense is not None
        or tuple(weight.shape[2:]) != (1, 1)
        or stride not in (1, (1, 1))
        or padding not in (0, (0, 0))
        or groups != 1
    ):
        return None
    size = tuple(input.shape[2:])
    maps = [x.small if isinstance(x, UpsampledLevel) else x for x in input.parts]
    corners = {
        x.aligned
        for x in input.parts
        if isinstance(x, UpsampledLevel) and tuple(x.small.shape[2:]) != size
    }
    fits = all(x.shape[2] <= size[0] and x.shape[3] <= size[1] for x in maps)
    # fuse_pyramid resizes to its first level.
    order = sorted(range(len(maps)), key=lambda level: -maps[level].shape[2:].numel())
    if not fits or len(corners) > 1 or tuple(maps[order[0]].shape[2:]) != size:
        return None
    mixers = weight.flatten(1).split([x.shape[1] for x in maps], 1)
    return fuse_projected(
        [maps[level] for level in order],
        [mixers[level] for level in order],
        weight.new_zeros(len(weight)) if bias is None else bias,
        corners == {True},
    )


class UpsampledLevel(Upsampled):
    """An upsampled level, which a concatenation takes without computing it."""

    fused: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {
        torch.cat: _concatenate,
        torch.concat: _concatenate,
        torch.concatenate: _concatenate,
    }


ConcatenatedLevels.fused = {F.conv2d: _convolve}


class _DeferLevels(TorchFunctionMode):
    """Defers bilinear resizes of maps of so many channels, until :meth:`stop`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels: int | None = channels

    def stop(self, *_: Any) -> None:
        self._channels = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and self._channels is not None:
            resized = deferred(UpsampledLevel, self._channels, *args, **kwargs)
            if resized is not None:
                return resized
        return func(*args, **kwargs)


def _convolution(head: Any) -> Any:
    fuse = head.linear_fuse
    return fuse if isinstance(fuse, nn.Conv2d) else next(iter(fuse.children()), None)


def _looks_like(head: nn.Module) -> bool:
    has_parts = set(dict(head.named_children())) >= _PARTS
    return has_parts and not any(kind.looks_like(head) for kind in FUSION_HEADS)


def _why_not(head: nn.Module) -> str | None:
    return unlike_plain_convolution(_convolution(head), levels=4)


def _run(original: Any, head: Any, *args: Any, **kwargs: Any) -> Any:
    convolution = _convolution(head)
    with _DeferLevels(convolution.in_channels // 4) as mode:
        # What is resized after the fusion is no level.
        hook = convolution.register_forward_pre_hook(mode.stop)
        try:
            return original(head, *args, **kwargs)
        finally:
            hook.remove()


INNER_FUSION = Kind(
    name="fusion inside a longer head",
    operator="fuse_pyramid",
    what="all-MLP fusion inside a longer head, as in released MRCFA and CFFM",
    looks_like=_looks_like,
    why_not=_why_not,
    run=_run,
    cannot_take=traced,
    example=None,
)
