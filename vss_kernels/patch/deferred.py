"""Maps that are upsampled only when something needs them at full size.

A loss or an argmax that comes next is computed from the small logits; whatever else is done with
the tensor gets the upsampled maps, as if they had been there from the start.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from vss_kernels._runtime.autocast import is_autocast
from vss_kernels._runtime.precision import accumulation_dtype
from vss_kernels._runtime.resize import resize
from vss_kernels.upsample_argmax import upsample_argmax
from vss_kernels.upsample_cross_entropy import upsample_cross_entropy


class DeferUpsampling(TorchFunctionMode):
    """Within this context a bilinear resize of logits is deferred.

    Args:
        channels: Number of channels K that tells logits from other maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Replaces resizes; everything else is called as it is."""
        kwargs = kwargs or {}
        if func is F.interpolate:
            resized = deferred(UpsampledLogits, self.channels, *args, **kwargs)
            if resized is not None:
                return resized
        return func(*args, **kwargs)


def deferred(
    kind: type[Upsampled],
    channels: int,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """Defers a call of F.interpolate.

    Args:
        kind: Class of the result.
        channels: Number of channels of the maps to defer.
        input: First argument of F.interpolate; the others are those of the function too.

    Returns:
        The deferred result; ``None`` if the call is no bilinear resize of such maps.
    """
    if (
        mode != "bilinear"
        or antialias
        or type(input) is not Tensor
        or input.dim() != 4
        or input.shape[1] != channels
        or not input.is_floating_point()
    ):
        return None
    if size is None:
        factors = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor,) * 2
        exact = [side * factor for side, factor in zip(input.shape[2:], factors, strict=True)]
        # Where a scale does not lead to a whole size, PyTorch resizes by the scale, not the sizes.
        if any(side != int(side) for side in exact):
            return None
        size = exact
    sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if min(sides) < 1:
        return None
    resized = _Defer.apply(kind, input, sides, bool(align_corners))
    resized.small = input
    return resized


class _Defer(torch.autograd.Function):
    """Gives deferred maps their place in the graph, for callers that no override reaches."""

    @staticmethod
    def forward(
        ctx: Any, kind: type[Upsampled], small: Tensor, size: tuple[int, int], align_corners: bool
    ) -> Tensor:
        ctx.shapes = (size, tuple(small.shape), align_corners)
        return kind(small.detach(), size, align_corners)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        size, shape, align_corners = ctx.shapes
        backward = torch.ops.aten.upsample_bilinear2d_backward
        return None, backward(grads[0].contiguous(), size, shape, align_corners), None, None


class Deferred(Tensor):
    """A tensor with a shape and a place in the graph, computed only where something needs it."""

    dense: Tensor | None
    fused: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]
    """Functions that can be computed without the tensor itself; each returns ``None`` if not."""

    def compute(self) -> Tensor:
        """Computes the tensor."""
        raise NotImplementedError

    def materialise(self) -> Tensor:
        """Returns the computed tensor; from then on it is what all callers get."""
        if self.dense is None:
            # It may be asked for in a metric without gradient first and in a loss later.
            with torch.enable_grad():
                self.dense = self.compute()
        return self.dense

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Computes what it can without the tensor, and all else from it."""
        kwargs = kwargs or {}
        if func in _metadata():
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        fused = cls.fused.get(func)
        if fused is not None:
            result = fused(*args, **kwargs)
            if result is not None:
                return result
        args, kwargs = pytree.tree_map_only(cls, cls.materialise, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Serves calls that came past the override above, below autograd."""
        args, kwargs = pytree.tree_map_only(Deferred, _values, (args, kwargs or {}))
        return func(*args, **kwargs)


def _values(tensor: Deferred) -> Tensor:
    if tensor.dense is not None:
        return tensor.dense.detach()
    with torch.no_grad():
        return tensor.compute()


class Upsampled(Deferred):
    """Maps of one size that stand for their bilinear resize to another.

    Args:
        small: Maps (N, C, h, w).
        size: Height and width after the resize.
        align_corners: Whether the centres of the corner pixels coincide in the resize.
    """

    small: Tensor
    resized_to: tuple[int, int]
    aligned: bool

    @staticmethod
    def __new__(cls, small: Tensor, size: tuple[int, int], align_corners: bool) -> Upsampled:
        """Makes a tensor of the large shape that owns no memory."""
        self = Tensor._make_wrapper_subclass(
            cls, (*small.shape[:2], *size), dtype=small.dtype, device=small.device
        )
        self.small = small
        self.resized_to = size
        self.aligned = align_corners
        self.dense = None
        return self

    def compute(self) -> Tensor:
        """Resizes the maps."""
        return resize(self.small, self.resized_to, self.aligned)


@functools.cache
def _metadata() -> frozenset[Any]:
    """What is known of upsampled logits without computing them."""
    properties = (
        "shape",
        "dtype",
        "device",
        "ndim",
        "requires_grad",
        "grad_fn",
        "is_cuda",
        "layout",
    )
    return frozenset(
        [
            *(getattr(Tensor, name).__get__ for name in properties),
            Tensor.size,
            Tensor.dim,
            Tensor.numel,
            Tensor.is_floating_point,
        ]
    )


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    if (
        not isinstance(input, UpsampledLogits)
        or input.dense is not None
        or type(target) is not Tensor
        or target.dtype != torch.int64
        or target.shape != (input.shape[0], *input.resized_to)
        or not (size_average is reduce is None)
        or (weight is not None and weight.dtype != accumulation_dtype(input.dtype))
    ):
        return None
    loss = upsample_cross_entropy(
        input.small,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        align_corners=input.aligned,
    )
    return loss if is_autocast(input.small) else loss.to(input.dtype)


def _argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor | None:
    if not isinstance(input, UpsampledLogits) or input.dense is not None or dim not in (1, -3):
        return None
    classes = upsample_argmax(input.small, input.resized_to, align_corners=input.aligned).long()
    return classes.unsqueeze(1) if keepdim else classes


class UpsampledLogits(Upsampled):
    """Upsampled class scores, of which a loss or an argmax needs the small ones only."""

    fused: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {
        F.cross_entropy: _cross_entropy,
        torch.argmax: _argmax,
        Tensor.argmax: _argmax,
    }
