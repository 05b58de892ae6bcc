"""SegFormer's all-MLP fusion heads, as several libraries write them: fuse_pyramid.

Each embeds every level, resizes all to the first, concatenates them and applies a 1x1 convolution.
Here the convolution is applied to each level at its own size, multiplied into the embedding where
that is linear, and fuse_pyramid resizes and adds the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vss_kernels.nn.dense import fuse_projected, fused_weights
from vss_kernels.patch.kinds import Kind, hooked


@dataclass(frozen=True)
class _Style:
    """How a library lays such a head out.

    Attributes:
        library: Its name, for the report.
        parts: Names of the children that must be there; all parameters belong to them.
        optional: Names of children that may be there too.
        embeddings: The modules that embed the levels, the largest level's first.
        convolution: The convolution with what follows it: one module, or the first of a sequence.
        smallest_first: Whether the concatenation starts with the smallest level.
        levels: Takes the module and the argument of forward; returns the levels, largest first.
        finish: Takes the module and the fused map after norm and activation; returns the answer.
        argument: Makes an argument of forward of the module and levels.
    """

    library: str
    parts: tuple[str, ...]
    optional: tuple[str, ...]
    embeddings: Callable[[Any], Sequence[nn.Module]]
    convolution: Callable[[Any], Sequence[nn.Module]]
    smallest_first: bool
    levels: Callable[[Any, Any], Sequence[Tensor]]
    finish: Callable[[Any, Tensor], Tensor]
    argument: Callable[[Sequence[Tensor]], Any] = list

    def kind(self) -> Kind:
        """Returns the replacement for heads of this style."""
        return Kind(
            name=f"all-MLP head of {self.library}",
            operator="fuse_pyramid",
            what=f"all-MLP fusion head as in {self.library}",
            looks_like=self._looks_like,
            why_not=self._why_not,
            run=self._run,
            cannot_take=self._cannot_take,
            example=self._example,
        )

    def _looks_like(self, module: nn.Module) -> bool:
        with_parameters = {
            name for name, child in module.named_children() if any(True for _ in child.parameters())
        }
        # A head with more parts, such as those of MRCFA and CFFM, does more than fuse.
        return set(self.parts) <= with_parameters <= {*self.parts, *self.optional}

    def _why_not(self, module: nn.Module) -> str | None:
        embeddings = self.embeddings(module)
        convolution, *_ = self.convolution(module)
        reason = unlike_plain_convolution(convolution, len(embeddings))
        if reason is not None:
            return reason
        linears = [part for part in map(_linear, embeddings) if part is not None]
        if len(linears) not in (0, len(embeddings)):
            return "some levels are embedded linearly, others are not"
        bypassed = [*embeddings, *linears] if linears else []
        return hooked([convolution, *bypassed])

    def _cannot_take(self, module: Any, *args: Any, **kwargs: Any) -> str | None:
        try:
            levels = self.levels(module, _first(args, kwargs))
        except ValueError as error:
            return str(error)
        if len(levels) != len(self.embeddings(module)) or any(x.dim() != 4 for x in levels):
            return "it takes one map (N, C, h, w) for each level"
        rows, columns = levels[0].shape[2:]
        if any(not (0 < x.shape[2] <= rows and 0 < x.shape[3] <= columns) for x in levels):
            return "a level is empty or larger than the first"
        return None

    def _run(self, original: Any, module: Any, *args: Any, **kwargs: Any) -> Tensor:
        levels = self.levels(module, _first(args, kwargs))
        embeddings = self.embeddings(module)
        convolution: Any
        convolution, *rest = self.convolution(module)
        mixers = convolution.weight.flatten(1).chunk(len(embeddings), 1)
        mixers = mixers[::-1] if self.smallest_first else mixers
        linears = [part for part in map(_linear, embeddings) if part is not None]
        if linears:
            weights, bias = fused_weights(linears, mixers)
        else:
            levels = [embed(level) for embed, level in zip(embeddings, levels, strict=True)]
            weights, bias = list(mixers), mixers[0].new_zeros(len(mixers[0]))
        if convolution.bias is not None:
            bias = bias + convolution.bias
        fused = fuse_projected(levels, weights, bias, getattr(module, "align_corners", False))
        for part in rest:
            fused = part(fused)
        return self.finish(module, fused)

    def _example(self, module: nn.Module) -> tuple[Any, ...]:
        levels = []
        for position, embedding in enumerate(self.embeddings(module)):
            (first,) = [m for m in embedding.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            channels = first.in_features if isinstance(first, nn.Linear) else first.in_channels
            levels.append(torch.randn(1, channels, 32 >> position, 48 >> position))
        return (self.argument(levels),)


def unlike_plain_convolution(module: Any, levels: int) -> str | None:
    """Returns why a module is no 1x1 convolution of concatenated levels, or ``None`` if it is."""
    if not (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and (module.groups, module.padding) == (1, (0, 0))
    ):
        return "what follows the concatenation is no plain 1x1 convolution"
    if module.in_channels % levels:
        return f"{module.in_channels} channels cannot be those of {levels} levels of equal width"
    return None


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The levels, which each library names differently."""
    return args[0] if args else next(iter(kwargs.values()))


def _linear(embedding: nn.Module) -> nn.Linear | None:
    """The linear layer that is all of an embedding's parameters, or ``None``."""
    layers = [
        part for part in embedding.modules() if next(part.parameters(False), None) is not None
    ]
    return layers[0] if len(layers) == 1 and isinstance(layers[0], nn.Linear) else None


def _dropped(module: Any, fused: Tensor) -> Tensor:
    return fused if module.dropout is None else module.dropout(fused)


def _smp_levels(module: Any, features: Sequence[Tensor]) -> Sequence[Tensor]:
    levels = features[2:] if features[1].shape[1] == 0 else features[1:]
    size = tuple(side // 4 for side in features[0].shape[2:])
    if tuple(levels[0].shape[2:]) != size:
        raise ValueError(f"the first level must have a quarter of the image's size, {size}")
    return levels


def _smp_argument(levels: Sequence[Tensor]) -> list[Tensor]:
    rows, columns = levels[0].shape[2:]
    if len(levels) > 4:  # an encoder with a level at half the image's size
        return [torch.zeros(1, 3, 2 * rows, 2 * columns), *levels]
    image = torch.zeros(1, 3, 4 * rows, 4 * columns)
    return [image, torch.zeros(1, 0, 2 * rows, 2 * columns), *levels]


_HUGGINGFACE = _Style(
    library="transformers",
    parts=("linear_projections", "linear_fuse", "batch_norm", "classifier"),
    optional=(),
    embeddings=lambda head: list(head.linear_projections),
    convolution=lambda head: [head.linear_fuse, head.batch_norm, head.activation],
    smallest_first=True,
    levels=lambda head, states: states,
    finish=lambda head, fused: head.classifier(head.dropout(fused)),
)
_HUGGINGFACE_4 = replace(
    _HUGGINGFACE,
    library="transformers before version 5",
    parts=("linear_c", *_HUGGINGFACE.parts[1:]),
    embeddings=lambda head: list(head.linear_c),
)
_SMP = _Style(
    library="segmentation_models_pytorch",
    parts=("mlp_stage", "fuse_stage"),
    optional=(),
    embeddings=lambda head: list(head.mlp_stage)[::-1],
    convolution=lambda head: list(head.fuse_stage.children()),
    smallest_first=True,
    levels=_smp_levels,
    finish=lambda head, fused: fused,
    argument=_smp_argument,
)
_MMSEG_LINEAR = _Style(
    library="mmsegmentation with linear embeddings",
    parts=("linear_c1", "linear_c2", "linear_c3", "linear_c4", "linear_fuse", "linear_pred"),
    optional=("conv_seg",),
    embeddings=lambda head: [getattr(head, f"linear_c{level}") for level in (1, 2, 3, 4)],
    convolution=lambda head: list(head.linear_fuse.children()),
    smallest_first=True,
    levels=lambda head, inputs: head._transform_inputs(inputs),
    finish=lambda head, fused: head.linear_pred(_dropped(head, fused)),
)
_MMSEG_CONVOLUTIONS = _Style(
    library="mmsegmentation",
    parts=("convs", "fusion_conv", "conv_seg"),
    optional=(),
    embeddings=lambda head: list(head.convs),
    convolution=lambda head: list(head.fusion_conv.children()),
    smallest_first=False,
    levels=lambda head, inputs: head._transform_inputs(inputs),
    finish=lambda head, fused: head.cls_seg(fused),
)

FUSION_HEADS = tuple(
    style.kind()
    for style in (
        _HUGGINGFACE,
        _HUGGINGFACE_4,
        _SMP,
        _MMSEG_LINEAR,
        _MMSEG_CONVOLUTIONS,
    )
)
