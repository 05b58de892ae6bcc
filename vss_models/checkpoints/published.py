"""Weights in the published layouts, in and out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vss_models.backbones import MixTransformer
from vss_models.checkpoints.io import write_file
from vss_models.checkpoints.key_map import (
    IMAGENET_CLASSIFIER,
    NO_CONTENT,
    OWN_LAYOUT,
    Names,
    backbone_layouts,
    released_names,
)
from vss_models.checkpoints.read import check_finite, read_checkpoint
from vss_models.checkpoints.report import CheckpointError, LoadReport, ShapeMismatch
from vss_models.model import VideoSegmentor

BATCH_COUNT = "num_batches_tracked"

_FAMILY_PREFIXES = {
    "CFFM++": ("decode_head.decoder_swin.", "decode_head.linear_pred3."),
    "CFFM": ("decode_head.decoder_focal.", "decode_head.linear_pred2."),
    "MRCFA": ("decode_head.hypercorre_module.", "decode_head.deco1."),
}
"""Names that only the head of one method has. CFFM++ has those of CFFM too."""


def load_released(
    model: VideoSegmentor,
    path: str | os.PathLike[str],
    verbose: bool = True,
    strict: bool = True,
) -> LoadReport:
    """Loads a file with the names of the released MRCFA and CFFM programs.

    Args:
        model: Model of the same encoder and head.
        path: File with `{"state_dict": {...}}` or the plain dict, `backbone.` and `decode_head.`
            names, .pth or .safetensors.
        verbose: Print the report.
        strict: Whether the file must hold exactly this model. False also takes a head with other,
            missing or misshapen weights (such as classifiers for another number of classes): the
            model keeps its own values there, and the report names them. The encoder must fit as a
            whole either way.

    Returns:
        What was used, missing, unexpected and of the wrong shape.

    Raises:
        CheckpointError: If the file cannot be read or does not fit; the model is then unchanged.
        FileNotFoundError: If there is no such file.
    """
    report = load_released_state(model, path, read_checkpoint(path).state, strict)
    if verbose:
        print(report)
    return report


def load_released_state(
    model: VideoSegmentor,
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    strict: bool = True,
) -> LoadReport:
    """Does what `load_released` does with the tensors of a file that has been read."""
    names = released_names(list(model.state_dict()))
    tensors, report = match_tensors(f"{path} (released layout)", model, state, names, NO_CONTENT)
    _refuse_backbone_mismatch(report, "backbone.")
    if strict and not report.complete:
        raise CheckpointError(
            f"the file holds a head of {released_family(state)} that is not the model's; build the "
            "model of the file, or load what fits of it with strict=False (another head, classes "
            f"or an incomplete file)\n{report}"
        )
    copy_tensors(model, tensors)
    return report


def load_backbone(
    model: VideoSegmentor, path: str | os.PathLike[str], verbose: bool = True
) -> LoadReport:
    """Loads the MiT encoder from an ImageNet file or from a whole segmentation model.

    The layout is recognised: ImageNet (no prefix), released (`backbone.`),
    segmentation_models_pytorch (`encoder.`) or Hugging Face (`segformer.encoder.`, `encoder.`);
    or a file of this package, a model's or a training run's, from which any encoder is loaded.
    A classification layer is ignored; weights of another model's head are reported as unexpected.

    Args:
        model: Model with an encoder of the same size.
        path: File with `{"state_dict": {...}}` or the plain dict, .pth or .safetensors.
        verbose: Print the report.

    Returns:
        What was used, missing, unexpected and of the wrong shape.

    Raises:
        CheckpointError: If the file cannot be read, or has not all weights of the encoder in the
            right shapes; the model is then unchanged.
        FileNotFoundError: If there is no such file.
        TypeError: If the file is not of this package and the model's encoder is not a MiT.
    """
    state = read_checkpoint(path).state
    layouts = backbone_layouts(list(model.backbone.state_dict()))
    is_mit = isinstance(model.backbone, MixTransformer)
    if not is_mit:
        layouts = {OWN_LAYOUT: layouts[OWN_LAYOUT]}
    found = {
        layout: sum(name in state for parts in names.values() for name in parts)
        for layout, names in layouts.items()
    }
    layout = max(found, key=lambda name: found[name])
    names = layouts[layout]
    if not (is_mit or found[layout]):
        raise TypeError(
            "load_backbone knows the names of MiT weights; this model's encoder is a "
            f"{type(model.backbone).__name__}. Give a file of this package, or use "
            "backbone_options={'pretrained': True}"
        )
    source = f"{path} ({layout} layout)"
    tensors, report = match_tensors(source, model.backbone, state, names, IMAGENET_CLASSIFIER)
    if report.missing or report.wrong_shape:
        raise CheckpointError(f"the encoder in the file is not the model's\n{report}")
    copy_tensors(model.backbone, tensors)
    if verbose:
        print(report)
    return report


def released_family(state: Mapping[str, Tensor]) -> str:
    """Tells by the names in a released file which method its head is of."""
    for family, prefixes in _FAMILY_PREFIXES.items():
        if any(name.startswith(prefixes) for name in state):
            return family
    return "SegFormer"


def to_released(model: VideoSegmentor) -> dict[str, Tensor]:
    """Returns the model's weights under the released names.

    The keys that carry nothing (`conv_seg`, index tables) are left out.
    """
    state = model.state_dict()
    return {names[0]: state[key] for key, names in released_names(list(state)).items()}


def save_released(model: VideoSegmentor, path: str | os.PathLike[str]) -> None:
    """Writes `{"state_dict": to_released(model)}`; the file appears whole or not at all."""
    write_file({"state_dict": to_released(model)}, path)


def match_tensors(
    source: str,
    module: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, Names],
    without_content: re.Pattern[str],
) -> tuple[dict[str, Tensor], LoadReport]:
    """Pairs the tensors of a file with a module's, and reports on every key of either.

    Args:
        source: What the report says the tensors are from.
        module: The module that shall get them; it is not changed.
        state: The file's tensors by their names in the file.
        names: Names in the file of each key of the module.
        without_content: What of the file carries nothing a model needs.

    Returns:
        The tensors that fit, by the module's keys, and the report.

    Raises:
        CheckpointError: If one of the tensors that fit is not finite.
    """
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
    check_finite(source, {name: state[name] for name in used})
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


def copy_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors into a module's own, by their keys in its state dict."""
    own = module.state_dict()
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(tensor)


__all__ = [
    "copy_tensors",
    "load_backbone",
    "load_released",
    "load_released_state",
    "match_tensors",
    "released_family",
    "save_released",
    "to_released",
]
