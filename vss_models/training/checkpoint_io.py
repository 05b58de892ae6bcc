"""Checkpoints of runs: written whole or not at all, and checked when they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from vss_models.checkpoints import CheckpointError
from vss_models.checkpoints.io import read_file, write_file
from vss_models.checkpoints.read import RUN, checkpoint_of
from vss_models.training.run_folder import LAST_CHECKPOINT, newest_intact


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

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a run's checkpoint, and checks it.

        Args:
            path: The file.
            map_location: Ignored: tensors come on the CPU, and are copied to where they belong.
            weights_only: Ignored: files are never allowed to run code.

        Returns:
            What was saved.

        Raises:
            CheckpointError: If the file is damaged, no checkpoint of a run, or has weights that are
                not finite. The message names the run's newest whole checkpoint.
            FileNotFoundError: If there is no such file.
        """
        try:
            content = read_file(path)
            kind = checkpoint_of(path, content).kind
        except CheckpointError as error:
            other = newest_intact(Path(path))
            advice = "" if other is None else f"\nThe newest whole checkpoint is {other}"
            raise CheckpointError(f"{error}{advice}") from error
        if kind != RUN:
            raise CheckpointError(
                f"{path} holds weights alone, not the state of a run: continue from the run's "
                f"{LAST_CHECKPOINT}, or start a new run from these weights with --checkpoint {path}"
            )
        return content
