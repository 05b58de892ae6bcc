"""The `vss` command: train, evaluate and use the models.

Each command imports what it needs when it is called, so that `vss segment` runs without the
training packages and `vss --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

_USAGE = """\
usage: vss COMMAND [OPTIONS]

  fit          train a model:             vss fit --config mrcfa_b1_vspw --data.root FOLDER
  test         evaluate a trained model:  vss test --config mrcfa_b1_vspw --checkpoint last.pt
  validate     the validation of a training run, on its own
  segment      label a video or frames:   vss segment clip.mp4 --checkpoint last.pt --out FOLDER
  export       write a model for ONNX:    vss export --checkpoint last.pt --out model.onnx
  synthesize   make a synthetic data set: vss synthesize FOLDER
  demo         all of this on made-up videos, on a plain CPU
  configs      list the configurations that come with the package
  info         operators, backends and versions

`vss COMMAND --help` tells the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `vss` command.

    Args:
        arguments: Command and options; those of the process if None.

    Returns:
        The exit status: 0 for success, 1 for files that are missing, broken or in the way.

    Raises:
        SystemExit: With status 2 if the options are not valid, 0 after printing help.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    command, options = arguments[0], arguments[1:]
    run = _COMMANDS.get(command)
    if run is None:
        print(f"vss: unknown command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
        return 2
    try:
        return run(command, options)
    except (FileNotFoundError, FileExistsError) as error:
        print(f"vss {command}: {error}", file=sys.stderr)
        return 1


def _import(module: str, extra: str) -> ModuleType:
    """Imports a command's module; a missing package is reported with how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("vss_models", "vss_kernels"):
            raise
        raise SystemExit(
            f"vss: this command needs {error.name}: pip install 'vss-kernels[{extra}]'"
        ) from error


def _train(command: str, options: list[str]) -> int:
    _import("vss_models.training.cli", "train").run_cli([command, *options])
    return 0


def _segment(command: str, options: list[str]) -> int:
    return _import("vss_models.commands.segment", "models").main(options)


def _export(command: str, options: list[str]) -> int:
    return _import("vss_models.commands.export", "models").main(options)


def _synthesize(command: str, options: list[str]) -> int:
    return _import("vss_models.commands.synthesize", "models").main(options)


def _demo(command: str, options: list[str]) -> int:
    return _import("vss_models.commands.demo", "train,dev").main(options)


def _configs(command: str, options: list[str]) -> int:
    for name in _import("vss_models.training.configs", "train").config_names():
        print(name)
    return 0


def _info(command: str, options: list[str]) -> int:
    importlib.import_module("vss_kernels.info").main()
    return 0


_COMMANDS: dict[str, Callable[[str, list[str]], int]] = {
    "fit": _train,
    "validate": _train,
    "test": _train,
    "segment": _segment,
    "export": _export,
    "synthesize": _synthesize,
    "demo": _demo,
    "configs": _configs,
    "info": _info,
}


if __name__ == "__main__":
    sys.exit(main())
