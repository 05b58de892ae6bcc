"""Checkpoints of runs: written whole or not at all, and read for their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from vss_models.checkpoints import RUN_KEY, CheckpointError, load_released, state_of_run
from vss_models.checkpoints.io import read_file, write_file
from vss_models.checkpoints.native import FORMAT
from vss_models.model import VideoSegmentor


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination and renames it once it is complete.

    Lightning's own writer goes through the system's folder for temporary files. That may be another
    file system, from where a move is a copy, and a copy can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Saves a checkpoint.

        Args:
            checkpoint: What to save.
            path: A file on a local file system; its folder is made if need be.
            storage_options: Must be None, as in the base class.

        Raises:
            TypeError: If ``storage_options`` is given.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options is not supported, got {storage_options!r}")
        write_file(checkpoint, path)


def load_weights(model: VideoSegmentor, path: str | os.PathLike[str]) -> None:
    """Loads weights of the same model from any file this package reads.

    Args:
        model: The model.
        path: A model file (``save_model``), a run's checkpoint, or a released file. Of the latter,
            head weights that do not fit (another number of classes) keep the model's values and are
            reported.

    Raises:
        CheckpointError: If the file cannot be read or is of another model.
        FileNotFoundError: If there is no such file.
    """
    content = read_file(Path(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights")
    if RUN_KEY in content:
        state, built_with = state_of_run(content), content[RUN_KEY]
    elif content.get("format") == FORMAT:
        state, built_with = content["state_dict"], content
    else:
        load_released(model, path)
        return
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is of the model {built_with['name']} with {built_with['num_classes']} classes "
            f"and overrides {built_with['overrides']}, which does not fit: {error}"
        ) from error
