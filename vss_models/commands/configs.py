"""`vss configs`: lists the configurations that come with the package."""

from __future__ import annotations

from collections.abc import Sequence

from vss_models.commands.errors import CommandParser
from vss_models.training.configs import config_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the names, one a line.

    Args:
        arguments: Command-line options; those of the process if None.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: If the options are not valid.
    """
    parser = CommandParser(
        prog="vss configs", description="List the configurations that come with the package."
    )
    parser.parse_args(arguments)
    for name in config_names():
        print(name)
    return 0
