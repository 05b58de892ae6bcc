"""The configurations that come with the package, by name.

A name is ``<model>_<recipe>``. Its file holds what is particular to the model; the recipe's file,
``<recipe>.yaml``, holds the rest and is read first. ``finetune`` is a recipe for any model: the
command line names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "configs"
RECIPES = ("vspw", "synthetic")
RECIPES_FOR_ANY_MODEL = ("finetune",)


def config_names() -> list[str]:
    """Names that :func:`config_files` knows, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in RECIPES)


def config_files(name: str) -> list[Path]:
    """Finds the files of a configuration, in the order in which they are to be read.

    Args:
        name: The name of a configuration of the package, or the path of a YAML file.

    Returns:
        The recipe and the model's file, or the one file that was named.

    Raises:
        ValueError: If there is neither such a file nor such a name.
    """
    if Path(name).is_file():
        return [Path(name)]
    if name in RECIPES_FOR_ANY_MODEL:
        return [FOLDER / f"{name}.yaml"]
    if name in config_names():
        return [FOLDER / f"{name.rsplit('_', 1)[1]}.yaml", FOLDER / f"{name}.yaml"]
    raise ValueError(
        f"--config must be a YAML file or one of {', '.join(config_names())}; got {name!r}"
    )


def expand_config_arguments(arguments: Sequence[str]) -> list[str]:
    """Replaces every named configuration on a command line by its files, in place.

    Args:
        arguments: Command-line arguments.

    Returns:
        The arguments with each ``--config NAME``, ``--config=NAME`` or ``-c NAME`` spelled out.

    Raises:
        ValueError: If a configuration is neither a file nor known by name.
    """
    expanded: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            expanded.append(argument)
            continue
        if not equals:
            value = next(remaining, "")
        for path in config_files(value):
            expanded += ["--config", str(path)]
    return expanded
