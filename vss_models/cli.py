"""The `vss` command: train, evaluate and use the models.

Each command imports what it needs when it is called, so that `vss segment` runs without the
training packages and `vss --help` answers at once. Errors become one line here and nowhere else.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from vss_models.command_processes import begin_import
from vss_models.commands.errors import EndedBySignal, describe
from vss_models.host_memory import ask_for_huge_pages, keep_freed_memory

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

`vss COMMAND --help` tells the options of a command. Each command also takes `--traceback`, which
shows where an error came from. `vss --version` tells the version.
"""

_TRACEBACK = "--traceback"

_DEFECTS = (LookupError, AttributeError, NameError, AssertionError)
"""Errors that no input should cause: they keep their traceback, which a report needs."""


class _Command(NamedTuple):
    """Where a command lives.

    Attributes:
        module: The module to import; its ``main`` takes the options and returns the exit status.
        extra: What to install if a package is missing: extras of this distribution.
        takes_name: Whether ``main`` gets the command's name before the options.
        shared: Module that processes of the command share: its import begins before the command's
            own imports, beside them.
    """

    module: str
    extra: str
    takes_name: bool = False
    shared: str = ""


_COMMANDS = {
    "fit": _Command("vss_models.commands.train", "train", takes_name=True),
    "validate": _Command("vss_models.commands.train", "train", takes_name=True),
    "test": _Command("vss_models.commands.train", "train", takes_name=True),
    "segment": _Command("vss_models.commands.segment", "models"),
    "export": _Command("vss_models.commands.export", "models"),
    "synthesize": _Command("vss_models.commands.synthesize", "models"),
    "demo": _Command("vss_models.commands.demo", "demo", shared="vss_models.training.cli"),
    "configs": _Command("vss_models.commands.configs", "train"),
    "info": _Command("vss_kernels.info", ""),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `vss` command.

    Args:
        arguments: Command and options; those of the process if None.

    Returns:
        The exit status: 0 for success, 1 for an error, whose one line is printed, 2 for an unknown
        command, 130 after Ctrl-C, 143 after SIGTERM, 141 if the reader of the output went away.

    Raises:
        SystemExit: With status 2 if the options are not valid, 0 after printing help.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = _TRACEBACK in arguments
    arguments = [argument for argument in arguments if argument != _TRACEBACK]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    name, options = arguments[0], arguments[1:]
    if name != "--version" and name not in _COMMANDS:
        print(f"vss: unknown command {name!r}\n\n{_USAGE}", end="", file=sys.stderr)
        return 2
    try:
        status = _print_version() if name == "--version" else _run(name, options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of the output, such as `head`, has all it wants. What is left goes nowhere, so
        # that closing stdout at the end does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except EndedBySignal as ended:
        _report(name, f"ended by {ended}")
        return 128 + ended.number
    except KeyboardInterrupt:
        _report(name, "interrupted")
        return 128 + signal.SIGINT
    except _DEFECTS:
        raise
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        _report(name, describe(error))
        return 1


def _run(name: str, options: list[str]) -> int:
    command = _COMMANDS[name]
    keep_freed_memory()
    ask_for_huge_pages()
    if command.shared:
        begin_import(command.shared)
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "vss_models", "vss_kernels"):
            raise
        remedy = f"vss-kernels[{command.extra}]" if command.extra else "vss-kernels"
        raise ModuleNotFoundError(
            f"this command needs the package {package}: pip install '{remedy}', or in a checkout "
            f"pip install --no-build-isolation '{remedy.replace('vss-kernels', '.')}'",
            name=error.name,
        ) from error
    return module.main([name, *options] if command.takes_name else options)


def _print_version() -> int:
    import torch

    from vss_kernels import __version__

    print(f"vss {__version__} (PyTorch {torch.__version__})")
    return 0


def _report(name: str, message: str) -> None:
    print(f"vss {name}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
