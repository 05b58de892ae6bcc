"""Weights of a trained model as the start of another training: other classes, another head."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from vss_models.checkpoints.key_map import NO_CONTENT, released_names
from vss_models.checkpoints.published import copy_tensors, match_tensors
from vss_models.checkpoints.read import PUBLISHED, read_checkpoint
from vss_models.checkpoints.report import CheckpointError, LoadReport, ShapeMismatch
from vss_models.model import VideoSegmentor

PER_FRAME_PARTS = ("backbone.", "head.fusion.", "head.classifier.")
"""What every model of this package has; the rest of a head works across frames."""

CLASSIFIERS = re.compile(r"^head\.(classifier|target_classifier|decoders\.\d+)\.(weight|bias)$")
"""Tensors whose first dimension is the number of classes."""


def load_pretrained(
    model: VideoSegmentor, path: str | os.PathLike[str], verbose: bool = True
) -> LoadReport:
    """Loads the weights of a trained model as the start of another training.

    The file may be of a model with other classes: classifiers that do not fit keep the model's
    fresh weights. It may also be of another head, such as a per-frame SegFormer's for MRCFA or
    CFFM: encoder, fusion and per-frame classifier are loaded, what works across frames is fresh,
    and the model starts with the predictions of its per-frame head, taken at 1/8 (see
    `SegFormerHead.start_as_per_frame`).
    Anything else that does not fit is refused, so that no weights are lost unnoticed.
    If all fits, the model also gets what the file says of its data (`model.trained_on`).

    Args:
        model: The model that is to be trained; built with fresh weights.
        path: A file of `save_model`, a checkpoint of a training run, or a released file.
        verbose: Print what was loaded and what stays fresh.

    Returns:
        What was used, missing, unexpected and of another number of classes.

    Raises:
        CheckpointError: If the file cannot be read, or its encoder, fusion or (in part) the head
            is of another model; the model is then unchanged.
        FileNotFoundError: If there is no such file.
    """
    checkpoint = read_checkpoint(path)
    keys = list(model.state_dict())
    if checkpoint.kind == PUBLISHED:
        origin, names = f"{path} (released layout)", released_names(keys)
    else:
        origin, names = _origin(path, checkpoint.description), {key: (key,) for key in keys}
    tensors, report = match_tensors(origin, model, checkpoint.state, names, NO_CONTENT)
    ours = {theirs: key for key, parts in names.items() for theirs in parts}
    _refuse_misfits(report, ours)
    copy_tensors(model, tensors)
    if not _across_frames(tensors):
        model.head.start_as_per_frame()
    if report.complete and checkpoint.kind != PUBLISHED:
        model.trained_on = checkpoint.trained_on
    if verbose:
        print(report)
        fresh = [ours[name] for name in (*report.missing, *(m.key for m in report.wrong_shape))]
        if fresh:
            print(f"  with fresh weights: {', '.join(_parts(fresh))}")
    return report


def _origin(path: str | os.PathLike[str], description: dict[str, Any]) -> str:
    settings = f" and {description['overrides']}" if description["overrides"] else ""
    classes = description["num_classes"]
    return f"{path} ({description['name']} with {classes} classes{settings})"


def _refuse_misfits(report: LoadReport, ours: dict[str, str]) -> None:
    """Raises unless all that does not fit are classifiers, or a whole part across frames."""
    of_other_shape = [m for m in report.wrong_shape if not _differs_in_classes(m, ours)]
    used = {ours[name] for name in report.used}
    of_other_classes = {ours[m.key] for m in report.wrong_shape}
    across_frames = _across_frames([*used, *of_other_classes])
    missing = [
        name for name in report.missing if ours[name].startswith(PER_FRAME_PARTS) or across_frames
    ]
    unexpected = [
        name
        for name in report.unexpected
        if not name.startswith(("head.", "decode_head.")) or across_frames
    ]
    if of_other_shape or missing or unexpected:
        raise CheckpointError(
            "the file is of another model: only the classifiers, or all of the head that works "
            "across frames, may differ; choose the model's name and overrides to fit the file\n"
            f"{report}"
        )


def _differs_in_classes(mismatch: ShapeMismatch, ours: dict[str, str]) -> bool:
    same_beyond = mismatch.found[1:] == mismatch.expected[1:]
    return same_beyond and CLASSIFIERS.match(ours[mismatch.key]) is not None


def _across_frames(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not key.startswith(PER_FRAME_PARTS)]


def _parts(keys: Iterable[str]) -> list[str]:
    """Names the modules that keys belong to, each once: `head.blocks`, `head.classifier`, ..."""
    return list(dict.fromkeys(".".join(key.split(".")[:2]) for key in keys))


__all__ = ["load_pretrained"]
