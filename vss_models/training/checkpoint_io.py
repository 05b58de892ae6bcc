"""Checkpoints of runs: written whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from vss_models.checkpoints.io import write_file


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
