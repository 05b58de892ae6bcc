"""Reading and writing files of weights: safe to read, never half written."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
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

    Args:
        path: The file.

    Returns:
        What was saved, with tensors on the CPU.

    Raises:
        CheckpointError: If the file is damaged, or would run code when loaded.
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened, such as a folder.
    """
    path = Path(path)
    if path.is_fifo():
        raise CheckpointError(f"{path} is a named pipe; weights are read from files only")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _check_archive(path)
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


_BAD_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,  # of a seek to where the archive says that a part begins
    RuntimeError,
)


def _check_archive(path: Path) -> None:
    """Raises if bytes of a file of torch.save have changed, which torch.load does not look at."""
    if not zipfile.is_zipfile(path):
        return  # of a PyTorch before 1.6, or no file of PyTorch at all
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            # Such files are not compressed; one that claims to be larger might never end.
            damaged = archive.testzip() if size <= path.stat().st_size else "everything"
    except _BAD_ARCHIVE as error:
        raise CheckpointError(f"{path} is damaged: {error}; use another copy of it") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged} in it is wrong; use another copy of it"
        )


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


__all__ = ["read_file", "write_file"]
