"""Weights made ready for evaluation once, and not again for every frame."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vss_kernels.nn import FocalAttention
from vss_models.backbones.mit import ReducedAttention
from vss_models.heads.fusion import PyramidFusion
from vss_models.model import VideoSegmentor
from vss_models.narrowing import narrowed_layers


class PreparedModel:
    """A copy of a model for evaluation that computes the same from fewer kernels.

    What depends on weights alone is computed here: the products of the fusion's matrices with the
    batch norm in them, the biases that focal attention looks up in its tables, the order in which
    reducing convolutions read their patches, and, where autocast would narrow weights at every use,
    narrow ones. All other weights are those of the model itself, not copies.

    Args:
        model: The model, in evaluation mode.
        dtype: What autocast narrows to, or None where there is no autocast.

    Attributes:
        model: The copy.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: VideoSegmentor, dtype: torch.dtype | None = None) -> None:
        self._original = model
        self._dtype = dtype
        # Modules are copied, parameters and buffers are not.
        tensors = [*model.parameters(), *model.buffers()]
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        self._own = self._values()
        for name, values in self._own.items():
            path, _, attribute = name.rpartition(".")
            module = self.model.get_submodule(path)
            if attribute in module._parameters:
                (value,) = values
                setattr(module, attribute, nn.Parameter(value, requires_grad=False))
            else:
                setattr(module, attribute, values)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the weights that the model has now; what was prepared keeps its address."""
        for name, values in self._values().items():
            for old, new in zip(self._own[name], values, strict=True):
                old.copy_(new)

    # Not in inference mode, whose tensors nothing but inference may use later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _values(self) -> dict[str, list[Tensor]]:
        """What takes the place of attributes of the model's modules, by name."""
        found: dict[str, Tensor] = {}
        if self._dtype is not None:
            for name, layer in narrowed_layers(self._original):
                for part, parameter in layer.named_parameters(recurse=False):
                    found[f"{name}.{part}"] = parameter.to(self._dtype, copy=True)
        lists: dict[str, list[Tensor]] = {}
        for name, module in self._original.named_modules():
            if isinstance(module, ReducedAttention) and module.reduction is not None:
                weight = f"{name}.reduction.weight"
                matrix = found.get(weight, module.reduction.weight)
                found[weight] = matrix.clone(memory_format=torch.channels_last)
            elif isinstance(module, PyramidFusion) and module.mode == "projected":
                weights, bias = module.level_weights(fold_norm=True)
                lists[f"{name}.prepared"] = [self._narrow(part) for part in (*weights, bias)]
            elif isinstance(module, FocalAttention):
                lists[f"{name}.prepared_bias"] = [self._narrow(module.bias())]
        return {**{name: [value] for name, value in found.items()}, **lists}

    def _narrow(self, value: Tensor) -> Tensor:
        return value if self._dtype is None else value.to(self._dtype)


__all__ = ["PreparedModel"]
