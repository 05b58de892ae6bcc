"""`vss fit`, `vss validate` and `vss test`."""

from __future__ import annotations

from collections.abc import Sequence

from vss_models.training.cli import run_cli


def main(arguments: Sequence[str]) -> int:
    """Trains or evaluates a model.

    Args:
        arguments: The command (fit, validate or test) and its options.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: If the options are not valid.
    """
    run_cli(arguments)
    return 0
