"""`vss demo`: the whole system on made-up videos."""

from __future__ import annotations

from collections.abc import Sequence

from vss_models.commands.errors import CommandParser
from vss_models.demo import DemoSettings, run_demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration.

    Args:
        arguments: Command-line options; those of the process if None.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: If the options are not valid.
        FileExistsError: If the folder is in the way.
    """
    defaults = DemoSettings()
    parser = CommandParser(
        prog="vss demo",
        description="Make synthetic videos, train a per-frame SegFormer on them and from it MRCFA "
        "and CFFM, compare them on held-out videos, segment an mp4, and write a report.",
    )
    parser.add_argument("--out", default="demo", help="folder for everything (default: demo)")
    parser.add_argument(
        "--first-steps",
        type=int,
        default=defaults.first_steps,
        help=f"training steps of the common start (default: {defaults.first_steps})",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=defaults.steps,
        help=f"training steps of each model from there (default: {defaults.steps})",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of everything")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the folder of an earlier demonstration"
    )
    options = parser.parse_args(arguments)
    settings = DemoSettings(first_steps=options.first_steps, steps=options.steps, seed=options.seed)
    run_demo(options.out, settings, overwrite=options.overwrite)
    return 0
