"""A model ready for use from any file of weights this package reads."""

from __future__ import annotations

import os

from vss_models.checkpoints.native import build_model
from vss_models.checkpoints.published import load_released_state, released_family
from vss_models.checkpoints.read import (
    PUBLISHED,
    PUBLISHED_CLASSIFIER,
    Checkpoint,
    read_checkpoint,
)
from vss_models.checkpoints.report import CheckpointError
from vss_models.model import VideoSegmentor
from vss_models.registry import create_model


def open_model(path: str | os.PathLike[str], name: str | None = None) -> VideoSegmentor:
    """Builds the model of a file with weights, in evaluation mode, on the CPU.

    Args:
        path: A file of `save_model`, a checkpoint of a training run, or a released file.
        name: Model name, such as "mrcfa_b1". A released file doesn't say its model, so it needs the
            name; for the others it is a check.

    Returns:
        The model, with all its weights from the file.

    Raises:
        CheckpointError: If the file cannot be read, is not of the named model, or lacks weights; or
            if it is a released file and there is no name.
        FileNotFoundError: If there is no such file.
        ValueError: If no model has that name.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.kind == PUBLISHED:
        return _build_released(path, checkpoint, name)
    model = build_model(path, checkpoint)
    if model.config is not None and name not in (None, model.config.name):
        raise CheckpointError(f"{path} is of the model {model.config.name}, not of {name}")
    return model


def _build_released(
    path: str | os.PathLike[str], checkpoint: Checkpoint, name: str | None
) -> VideoSegmentor:
    if name is None:
        raise CheckpointError(
            f"{path} doesn't say which model it is of; give the model's name, such as mrcfa_b1"
        )
    if checkpoint.num_classes is None:
        raise CheckpointError(
            f"{path} is not in a layout this program knows: it has no {PUBLISHED_CLASSIFIER}"
        )
    family = released_family(checkpoint.state)
    if family == "CFFM++":
        raise CheckpointError(
            f"{path} is of CFFM++, a model that this program does not have yet: its prototypes "
            "would be left out and the labels would be CFFM's. To use it as the CFFM within, load "
            "it with load_released(create_model('cffm_b1', ...), path, strict=False)"
        )
    model = create_model(name, checkpoint.num_classes)
    if name.split("_")[0] != family.lower():
        raise CheckpointError(f"{path} is of {family}, not of {name}")
    load_released_state(model, path, checkpoint.state)
    return model.eval()


__all__ = ["open_model"]
