"""Text files of a data set."""

from __future__ import annotations

from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a UTF-8 text file, with or without a byte order mark.

    Raises:
        ValueError: It is not UTF-8; the message names the file.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})"
        ) from error


__all__ = ["read_lines"]
