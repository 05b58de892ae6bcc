"""Finds the settings of a run that have no value or none of their kind.

The parser checks the values it is given, but takes ``null`` and what is no mapping at all for a
request to leave a setting to its default, which then fails somewhere inside.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from vss_models.training.callbacks import SampleOverlays
from vss_models.training.data import VideoDataModule
from vss_models.training.module import SegmentationModule
from vss_models.training.run_checkpoints import RunCheckpoints
from vss_models.training.writer import ReportWriter

_GROUPS: dict[str, type] = {
    "data": VideoDataModule,
    "model": SegmentationModule,
    "checkpoints": RunCheckpoints,
    "overlays": SampleOverlays,
    "report": ReportWriter,
}
"""Groups of settings, and what takes them."""

_LARGEST_SEED = 2**63 - 1


def complaint_about(config: Namespace) -> str | None:
    """Says what is wrong with a run's settings.

    Args:
        config: Settings of `vss fit`, `validate` or `test`, as parsed.

    Returns:
        What is wrong with the first wrong one; None if they are right.
    """
    if not 0 <= config.seed <= _LARGEST_SEED:
        return f"seed must be from 0 to {_LARGEST_SEED}, got {config.seed}"
    for name, taker in _GROUPS.items():
        complaint = _complaint(name, config.get(name), taker)
        if complaint is not None:
            return complaint
    return None


def complaint_about_files(arguments: Sequence[str]) -> str | None:
    """Says which configuration file has something else where a group of settings belongs.

    The parser would take, say, ``model: -1`` for the request of a model of default settings.

    Args:
        arguments: A command line with ``--config FILE`` for every file.

    Returns:
        What is wrong with the first such file; None if they are right, or not YAML at all, which
        the parser says.
    """
    for option, value in itertools.pairwise(arguments):
        if option != "--config":
            continue
        try:
            settings = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        for name in (*_GROUPS, "trainer"):
            group = settings.get(name, {}) if isinstance(settings, dict) else {}
            if not isinstance(group, dict | str):  # a word is another file, with these settings
                return f"{value}: {name} must hold settings, NAME: VALUE, got {group!r}"
            broken = _with_null_character(name, group)
            if broken is not None:
                return f"{value}: {broken} must not hold a null character"
    return None


def _with_null_character(name: str, setting: Any) -> str | None:
    """Finds text that no file system takes, which the parser tries as the name of a file."""
    if isinstance(setting, dict):
        found = (_with_null_character(f"{name}.{key}", value) for key, value in setting.items())
        return next((path for path in found if path is not None), None)
    return name if isinstance(setting, str) and "\0" in setting else None


def _complaint(name: str, settings: Any, taker: type) -> str | None:
    if not isinstance(settings, Namespace):
        return f"{name} must hold settings, NAME: VALUE, got {settings!r}"
    hints = typing.get_type_hints(vars(taker)["__init__"])
    for key, value in vars(settings).items():
        hint = hints.get(key)
        if value is None and hint is not None and not _may_be_none(hint):
            return f"{name}.{key} must not be null; leave it out for the default"
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            complaint = _complaint(f"{name}.{key}", value, hint)
            if complaint is not None:
                return complaint
    return None


def _may_be_none(hint: Any) -> bool:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return hint in (Any, type(None)) or (is_union and type(None) in typing.get_args(hint))


__all__ = ["complaint_about"]
