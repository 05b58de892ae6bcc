"""A model ready for use from any file of weights this package reads."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from vss_models.checkpoints.io import read_file, read_state
from vss_models.checkpoints.native import FORMAT, build_model, load_model
from vss_models.checkpoints.published import load_released, released_family
from vss_models.checkpoints.report import CheckpointError
from vss_models.model import VideoSegmentor
from vss_models.registry import create_model

RUN_KEY = "vss_model"
"""Where a training run's checkpoint says what its model was built with."""

_RELEASED_CLASSIFIER = "decode_head.linear_pred.weight"


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
    content = read_file(path)
    if isinstance(content, dict) and RUN_KEY in content:
        model = _build_from_run(path, content)
    elif isinstance(content, dict) and content.get("format") == FORMAT:
        model = load_model(path)
    else:
        return _build_released(path, name)
    if model.config is not None and name not in (None, model.config.name):
        raise CheckpointError(f"{path} is of the model {model.config.name}, not of {name}")
    return model


def state_of_run(content: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the model's weights from the contents of a training run's checkpoint."""
    prefix = "model."
    return {
        key.removeprefix(prefix): value
        for key, value in content["state_dict"].items()
        if key.startswith(prefix)
    }


def _build_from_run(path: str | os.PathLike[str], content: dict[str, Any]) -> VideoSegmentor:
    try:
        return build_model({**content[RUN_KEY], "state_dict": state_of_run(content)})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not describe a model of this program: {error}"
        ) from error


def _build_released(path: str | os.PathLike[str], name: str | None) -> VideoSegmentor:
    if name is None:
        raise CheckpointError(
            f"{path} doesn't say which model it is of; give the model's name, such as mrcfa_b1"
        )
    state = read_state(path)
    if _RELEASED_CLASSIFIER not in state:
        raise CheckpointError(
            f"{path} is not in a layout this program knows: it has no {_RELEASED_CLASSIFIER}"
        )
    family = released_family(state)
    if family == "CFFM++":
        raise CheckpointError(
            f"{path} is of CFFM++, a model that this program does not have yet: its prototypes "
            "would be left out and the labels would be CFFM's. To use it as the CFFM within, load "
            "it with load_released(create_model('cffm_b1', ...), path, strict=False)"
        )
    model = create_model(name, state[_RELEASED_CLASSIFIER].shape[0])
    if name.split("_")[0] != family.lower():
        raise CheckpointError(f"{path} is of {family}, not of {name}")
    load_released(model, path, verbose=False)
    return model.eval()


__all__ = ["RUN_KEY", "open_model", "state_of_run"]
