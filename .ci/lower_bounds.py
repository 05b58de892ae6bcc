"""Prints the lower bounds in pyproject.toml as exact versions, one a line: `pip install $(...)`.

    python .ci/lower_bounds.py EXTRA...

A requirement without a lower bound is an error: nobody could tell whether it holds.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

OWN_NAME = "vss-kernels"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<extras>[\w,-]+)\])?(>=(?P<version>[\w.]+))?")


def pins(project: dict, extras: list[str]) -> list[str]:
    """Collects the requirements of the package and of extras as `name[extras]==version`.

    Args:
        project: The table `[project]` of a pyproject.toml.
        extras: Names of extras; those that they include are followed.

    Raises:
        SystemExit: A requirement has no lower bound.
    """
    found: dict[str, str] = {}
    waiting = [*project["dependencies"]]
    seen: set[str] = set()
    while extras or waiting:
        while extras:
            extra = extras.pop()
            if extra not in seen:
                seen.add(extra)
                waiting += project["optional-dependencies"][extra]
        while waiting:
            requirement = waiting.pop(0)
            match = _REQUIREMENT.fullmatch(requirement.replace(" ", ""))
            if match is not None and match["name"] == OWN_NAME:
                extras += match["extras"].split(",")
            elif match is None or match["version"] is None:
                raise SystemExit(f"pyproject.toml: {requirement!r} has no bound NAME>=VERSION")
            else:
                named = match["name"] + (f"[{match['extras']}]" if match["extras"] else "")
                found[named] = match["version"]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    content = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    print("\n".join(pins(content["project"], sys.argv[1:])))
