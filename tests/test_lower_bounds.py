"""The list of the oldest versions that pyproject.toml allows."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("lower_bounds", ROOT / ".ci" / "lower_bounds.py")
assert spec is not None
assert spec.loader is not None
lower_bounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lower_bounds)


def test_extras_are_followed() -> None:
    project = {
        "dependencies": ["torch>=2.10"],
        "optional-dependencies": {
            "models": ["timm>=1.0"],
            "train": ["vss-kernels[models]", "jsonargparse[signatures]>=4.30"],
            "other": ["rich>=13"],
        },
    }
    assert lower_bounds.pins(project, ["train"]) == [
        "jsonargparse[signatures]==4.30",
        "timm==1.0",
        "torch==2.10",
    ]


def test_a_requirement_without_a_bound_is_an_error() -> None:
    project = {"dependencies": ["numpy"], "optional-dependencies": {}}
    with pytest.raises(SystemExit, match="'numpy' has no bound"):
        lower_bounds.pins(project, [])


def test_every_requirement_of_users_has_a_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for name in project["optional-dependencies"] if name != "dev"]
    pinned = lower_bounds.pins(project, extras)
    assert {pin.split("==")[0] for pin in pinned} >= {"torch", "lightning", "av", "matplotlib"}
