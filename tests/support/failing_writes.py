"""What every writer of files owes when it fails at the last moment."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from vss_models import atomic


def assert_a_failure_changes_nothing(
    write: Callable[[Path], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes into an empty folder, then again with a rename that fails; compares all files."""
    write(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before

    def fail(temporary: Path, path: Path) -> None:
        assert temporary.stat().st_size > 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
