"""The project's own checkpoints: the weights and all that is needed to build the model again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from vss_models.checkpoints.io import write_file
from vss_models.checkpoints.read import (
    FORMAT,
    FORMAT_VERSION,
    MODEL,
    RUN,
    Checkpoint,
    read_checkpoint,
)
from vss_models.checkpoints.report import CheckpointError
from vss_models.model import VideoSegmentor
from vss_models.registry import create_model

_MISFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What building a model raises for settings of wrong types and sizes."""


def save_model(
    model: VideoSegmentor,
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a checkpoint that `load_model` turns back into the model.

    Args:
        model: Model from `create_model`.
        path: File to write; it appears whole or not at all.
        class_names: Names of the classes; those of `model.trained_on` if left out.

    Raises:
        ValueError: If the model was not built by `create_model`, or the names don't fit it.
    """
    write_file(describe_model(model, class_names), path)


def describe_model(
    model: VideoSegmentor, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Returns the contents of a checkpoint: plain types and tensors; see `save_model`."""
    if model.config is None:
        raise ValueError("only a model built by create_model can be saved with its settings")
    trained_on = model.trained_on
    if class_names is not None:
        trained_on = replace(trained_on, class_names=tuple(class_names))
    trained_on.check_fits(model.num_classes, model.num_references)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": model.config.name,
        "num_classes": model.config.num_classes,
        "overrides": model.config.overrides,
        **asdict(trained_on),
        "state_dict": model.state_dict(),
    }


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> VideoSegmentor:
    """Builds the model of a checkpoint written by `save_model`, in evaluation mode.

    Args:
        path: The checkpoint.
        device: Where to put the model.

    Returns:
        The model; what it was trained on is set where the checkpoint says so.

    Raises:
        CheckpointError: If the file is no such checkpoint, is damaged, or is of a newer format.
        FileNotFoundError: If there is no such file.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.kind == RUN:
        raise CheckpointError(f"{path} is a checkpoint of a training run: use open_model(path)")
    if checkpoint.kind != MODEL:
        raise CheckpointError(
            f"{path} is not a checkpoint of save_model. For released weights build the model with "
            "create_model and call load_released(model, path)"
        )
    return build_model(path, checkpoint).to(device)


def build_model(path: str | os.PathLike[str], checkpoint: Checkpoint) -> VideoSegmentor:
    """Builds the model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: The file, for messages.
        checkpoint: Its contents; of kind `MODEL` or `RUN`.

    Returns:
        The model, with all its weights from the file.

    Raises:
        CheckpointError: If the description and the tensors are not of one model of this program.
    """
    description = checkpoint.description
    try:
        # Without memory first: a false description must not ask for more than the file holds.
        with torch.device("meta"):
            outline = _model_of(description)
        outline.load_state_dict(checkpoint.state, assign=True)
        model = _model_of(description)
        model.load_state_dict(checkpoint.state)
        model.trained_on = checkpoint.trained_on
        model.trained_on.check_fits(model.num_classes, model.num_references)
    except _MISFIT as error:
        raise CheckpointError(
            f"{path} does not describe a model of this program: {error}"
        ) from error
    return model.eval()


def _model_of(description: Mapping[str, Any]) -> VideoSegmentor:
    overrides = dict(description["overrides"])
    if overrides.get("backbone_options"):
        # The weights come from the checkpoint: nothing to download.
        overrides["backbone_options"] = {**overrides["backbone_options"], "pretrained": False}
    return create_model(description["name"], description["num_classes"], **overrides)


__all__ = ["build_model", "describe_model", "load_model", "save_model"]
