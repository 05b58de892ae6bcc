"""`vss synthesize FOLDER`: makes a labelled synthetic data set."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

from vss_models.commands.errors import CommandParser
from vss_models.data.synthetic import make_synthetic_dataset


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the data set.

    Args:
        arguments: Command-line options; those of the process if None.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: If the options are not valid.
        ValueError: If a number is out of range.
        FileExistsError: If the folder is not empty and ``--overwrite`` is not given.
    """
    options = _parser().parse_args(arguments)
    root = make_synthetic_dataset(
        options.folder,
        num_train=options.num_train,
        num_val=options.num_val,
        frames=options.frames,
        size=(options.size[1], options.size[0]),
        seed=options.seed,
        overwrite=options.overwrite,
    )
    print(f"{root}: {options.num_train} training and {options.num_val} validation videos")
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(make_synthetic_dataset).parameters.items()
    }
    parser = CommandParser(
        prog="vss synthesize",
        description="Make a labelled synthetic data set in the VSPW layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", help="folder to make")
    for name, text in (
        ("num_train", "training videos"),
        ("num_val", "validation videos"),
        ("frames", "frames of each video"),
        ("seed", "seed of everything"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=defaults[name], help=text)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=defaults["size"][::-1],
        metavar=("WIDTH", "HEIGHT"),
        help="size of the frames",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    return parser
