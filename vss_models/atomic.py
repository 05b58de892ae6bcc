"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
_NAME_LENGTH = 60
"""Letters of a file's name that its temporary name keeps: file systems allow 255 bytes in all."""


class AtomicFile:
    """A file that is written under a temporary name and gets its own name once it is complete.

    The temporary file lies in the same folder, hence on the same file system, where a rename cannot
    be cut short. For files that one block of code writes, see :func:`atomic_write`.

    Args:
        path: The file; one that exists is replaced at the end.
        suffix: End of the temporary name, for writers that choose the format by it.
        sync: Whether the contents must have reached the disk before the file gets its name, so that
            not even a power failure leaves an empty file under it. It takes milliseconds.

    Attributes:
        path: The file.
        temporary: Where to write; nothing is there yet.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """

    def __init__(
        self, path: str | os.PathLike[str], suffix: str = TEMPORARY_SUFFIX, sync: bool = True
    ) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"{self.path} cannot be written: there is no folder {self.path.parent}"
            )
        # The random part keeps several writers of one file apart.
        name = f".{self.path.name[:_NAME_LENGTH]}.{secrets.token_hex(4)}{suffix}"
        self.temporary = self.path.with_name(name)
        self._sync = sync

    def commit(self) -> None:
        """Gives the file its name.

        Raises:
            OSError: If the disk or the file system refuses; nothing is left behind then.
        """
        try:
            if self._sync:
                with self.temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(self.temporary, self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes what was written; an earlier file of that name stays as it was."""
        self.temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(
    path: str | os.PathLike[str], suffix: str = TEMPORARY_SUFFIX, sync: bool = True
) -> Iterator[Path]:
    """Lets a block write a file that appears under its name when the block is through.

    An exception in the block, KeyboardInterrupt included, removes what was written and leaves an
    earlier file as it was.

    Args:
        path: The file; one that exists is replaced.
        suffix: See :class:`AtomicFile`.
        sync: See :class:`AtomicFile`.

    Yields:
        The temporary path to write to.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written; the error names the file.
    """
    file = AtomicFile(path, suffix, sync)
    try:
        with naming_file(file.path, file.temporary):
            yield file.temporary
            file.commit()
    except BaseException:
        file.discard()
        raise


@contextmanager
def naming_file(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Lets an OSError of a block name the file it is about; that of a full disk names none.

    Args:
        path: The file to name.
        temporary: Another name of it, which means nothing to the user.
    """
    try:
        yield
    except OSError as error:
        known = error.filename is not None and str(error.filename) != str(temporary)
        if error.errno is None or known:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Removes what writers that were killed left of files whose names fit a pattern.

    Nobody else may be writing such a file at the time.

    Args:
        folder: The folder; it need not exist.
        pattern: Names of the files, with wildcards as in :meth:`pathlib.Path.glob`.
    """
    for path in folder.glob(f".{pattern}.{'[0-9a-f]' * 8}{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


__all__ = ["AtomicFile", "atomic_write", "naming_file", "remove_leftovers"]
