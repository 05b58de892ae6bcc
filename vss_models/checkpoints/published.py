"""Weights in the published layouts, in and out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vss_models.backbones import MixTransformer
from vss_models.checkpoints.io import read_state, write_file
from vss_models.checkpoints.key_map import (
    IMAGENET_CLASSIFIER,
    NO_CONTENT,
    Names,
    backbone_layouts,
    released_names,
)
from vss_models.checkpoints.report import CheckpointError, LoadReport, ShapeMismatch
from vss_models.model import VideoSegmentor

BATCH_COUNT = "num_batches_tracked"


def load_released(
    model: VideoSegmentor, path: str | os.PathLike[str], verbose: bool = True
) -> LoadReport:
    """Loads a file with the names of the released MRCFA and CFFM programs.

    The encoder must fit as a whole. Head weights that are missing or of another shape (such as
    classifiers for another number of classes) keep the model's values and are reported.

    Args:
        model: Model of the same encoder and head.
        path: File with `{"state_dict": {...}}` or the plain dict, `backbone.` and `decode_head.`
            names, .pth or .safetensors.
        verbose: Print the report.

    Returns:
        What was used, missing, unexpected and of the wrong shape.

    Raises:
        CheckpointError: If the file cannot be read or the encoder does not match; the model is
            then unchanged.
        FileNotFoundError: If there is no such file.
    """
    state = read_state(path)
    names = released_names(list(model.state_dict()))
    tensors, report = _match(f"{path} (released layout)", model, state, names, NO_CONTENT)
    _refuse_backbone_mismatch(report, "backbone.")
    _copy(model, tensors)
    if verbose:
        print(report)
    return report


def load_backbone(
    model: VideoSegmentor, path: str | os.PathLike[str], verbose: bool = True
) -> LoadReport:
    """Loads the MiT encoder from an ImageNet file or from a whole segmentation model.

    The layout is recognised: ImageNet (no prefix), released (`backbone.`),
    segmentation_models_pytorch (`encoder.`) or Hugging Face (`segformer.encoder.`, `encoder.`).
    A classification layer is ignored; weights of another model's head are reported as unexpected.

    Args:
        model: Model with a MiT encoder of the same size.
        path: File with `{"state_dict": {...}}` or the plain dict, .pth or .safetensors.
        verbose: Print the report.

    Returns:
        What was used, missing, unexpected and of the wrong shape.

    Raises:
        CheckpointError: If the file cannot be read, or has not all weights of the encoder in the
            right shapes; the model is then unchanged.
        FileNotFoundError: If there is no such file.
        TypeError: If the model's encoder is not a MiT.
    """
    if not isinstance(model.backbone, MixTransformer):
        raise TypeError(
            "load_backbone knows the names of MiT weights; this model's encoder is a "
            f"{type(model.backbone).__name__}. Use backbone_options={{'pretrained': True}}"
        )
    state = read_state(path)
    layouts = backbone_layouts(list(model.backbone.state_dict()))
    layout, names = max(
        layouts.items(),
        key=lambda item: sum(n in state for names in item[1].values() for n in names),
    )
    source = f"{path} ({layout} layout)"
    tensors, report = _match(source, model.backbone, state, names, IMAGENET_CLASSIFIER)
    if report.missing or report.wrong_shape:
        raise CheckpointError(f"the encoder in the file is not the model's\n{report}")
    _copy(model.backbone, tensors)
    if verbose:
        print(report)
    return report


def to_released(model: VideoSegmentor) -> dict[str, Tensor]:
    """Returns the model's weights under the released names.

    The keys that carry nothing (`conv_seg`, index tables) are left out.
    """
    state = model.state_dict()
    return {names[0]: state[key] for key, names in released_names(list(state)).items()}


def save_released(model: VideoSegmentor, path: str | os.PathLike[str]) -> None:
    """Writes `{"state_dict": to_released(model)}`; the file appears whole or not at all."""
    write_file({"state_dict": to_released(model)}, path)


def _match(
    source: str,
    module: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, Names],
    without_content: re.Pattern[str],
) -> tuple[dict[str, Tensor], LoadReport]:
    """Pairs the tensors of a file with a module's, and reports on every key of either."""
    tensors: dict[str, Tensor] = {}
    used: list[str] = []
    missing: list[str] = []
    wrong_shape: list[ShapeMismatch] = []
    for key, target in module.state_dict().items():
        parts = names[key]
        absent = [name for name in parts if name not in state]
        if absent:
            # Files older than the counter lack it, and only a cumulative average would need it.
            missing += [name for name in absent if not name.endswith(BATCH_COUNT)]
            continue
        expected = (target.shape[0] // len(parts), *target.shape[1:]) if target.dim() else ()
        misfits = [
            ShapeMismatch(name, tuple(state[name].shape), expected)
            for name in parts
            if tuple(state[name].shape) != expected
        ]
        if misfits:
            wrong_shape += misfits
            continue
        used += parts
        found = [state[name] for name in parts]
        tensors[key] = found[0] if len(found) == 1 else torch.cat(found)
    known = {name for parts in names.values() for name in parts}
    rest = [name for name in state if name not in known]
    report = LoadReport(
        source,
        used=tuple(used),
        missing=tuple(missing),
        unexpected=tuple(name for name in rest if not without_content.search(name)),
        wrong_shape=tuple(wrong_shape),
        ignored=tuple(name for name in rest if without_content.search(name)),
    )
    return tensors, report


def _refuse_backbone_mismatch(report: LoadReport, prefix: str) -> None:
    faulty = [*report.missing, *report.unexpected, *(m.key for m in report.wrong_shape)]
    if any(name.startswith(prefix) for name in faulty):
        raise CheckpointError(f"the encoder in the file is not the model's\n{report}")


def _copy(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(tensor)


__all__ = ["load_backbone", "load_released", "save_released", "to_released"]
