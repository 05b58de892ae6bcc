"""What came of loading a file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

LISTED_NAMES = 40


class CheckpointError(RuntimeError):
    """A file of weights cannot be read, or does not belong to the model."""


class ShapeMismatch(NamedTuple):
    """A key whose tensor does not fit.

    Attributes:
        key: Name in the file.
        found: Shape in the file.
        expected: Shape in the model.
    """

    key: str
    found: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key}: file {self.found}, model {self.expected}"


@dataclass(frozen=True)
class LoadReport:
    """Which keys of a file were used, all under their names in the file.

    Attributes:
        source: The file, and the layout of its names.
        used: Keys copied into the model.
        missing: Keys the model needs and the file has not; the model keeps its own values there.
        unexpected: Keys of the file the model has no place for.
        wrong_shape: Keys that do not fit; the model keeps its own values there.
        ignored: Keys that carry nothing a model needs.
    """

    source: str
    used: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[ShapeMismatch, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every weight of the model came from the file and nothing was left over."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {len(self.used)} keys used, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.wrong_shape)} of the wrong shape, "
            f"{len(self.ignored)} without content"
        ]
        lines += _list("missing", self.missing)
        lines += _list("unexpected", self.unexpected)
        lines += _list("wrong shape", [str(mismatch) for mismatch in self.wrong_shape])
        return "\n".join(lines)


def _list(title: str, names: Sequence[str]) -> list[str]:
    lines = [f"  {title}: {name}" for name in names[:LISTED_NAMES]]
    if len(names) > LISTED_NAMES:
        lines.append(f"  {title}: and {len(names) - LISTED_NAMES} more")
    return lines


__all__ = ["CheckpointError", "LoadReport", "ShapeMismatch"]
