"""Reading and writing files of weights: safe to read, never half written."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vss_models.atomic import atomic_write
from vss_models.checkpoints.report import CheckpointError

UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What torch.load raises for cut-off files, other formats and forbidden contents."""


def read_file(path: str | os.PathLike[str]) -> Any:
    """Reads a .pth file of tensors and plain types, or a .safetensors file.

    Raises:
        CheckpointError: If the file is damaged, or would run code when loaded.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path} cannot be read as a file of weights ({os.path.getsize(path)} bytes): it is "
            f"cut off, of another format, or holds objects other than tensors and plain types. "
            f"torch.load says: {str(error).splitlines()[0] if str(error) else repr(error)}"
        ) from error


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the tensors of a file: `{"state_dict": {...}}` or the plain dict.

    Raises:
        CheckpointError: If the file cannot be read or holds no named tensors.
        FileNotFoundError: If there is no such file.
    """
    content = read_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(sorted(str(key) for key in content)[:8]) or "none"
        raise CheckpointError(f"{path} holds no named tensors; its keys are: {keys}")
    return state


def write_file(content: Any, path: str | os.PathLike[str]) -> None:
    """Saves with torch.save; the file appears whole or not at all.

    Args:
        content: What to save.
        path: The file; its folder is made if need be.

    Raises:
        OSError: If the disk is full or refuses the file otherwise; the error names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, _Reporting(temporary) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if file.error is None:
                raise
            raise file.error from error


class _Reporting(io.BufferedWriter):
    """A new file that remembers why it could not be written.

    Of a full disk torch.save says no more than "unexpected pos 3131968 vs 3131856".
    """

    error: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ImportError(f"reading {path} needs `pip install safetensors`") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


__all__ = ["read_file", "read_state", "write_file"]
