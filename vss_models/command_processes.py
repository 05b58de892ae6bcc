"""`vss` commands in processes of their own that share one import of their libraries.

Importing a trainer's libraries takes seconds. A server process does that once and is forked for
each command. This module itself imports nothing that takes time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")


def begin_import(module: str) -> None:
    """Lets the server process import a module, in the background.

    Once the server runs, this changes nothing.

    Args:
        module: Full name of the module.
    """
    _CONTEXT.set_forkserver_preload([module])
    # A process has started when the server has forked it, which it does after its imports.
    threading.Thread(target=_run_nothing, name="begin import", daemon=True).start()


def run_command(arguments: Sequence[str], log: Path, threads: int) -> int:
    """Runs a command to its end.

    Args:
        arguments: The command and its options, as behind `vss`.
        log: File for everything that it prints.
        threads: Number of PyTorch's threads.

    Returns:
        The exit status, negative for the number of a signal that killed it.
    """
    process = _CONTEXT.Process(target=_run, args=(list(arguments), log, threads))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run_nothing() -> None:
    # Threads that wait leave the cores to the other commands, and to whatever else runs here. The
    # environment is read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    process = _CONTEXT.Process(target=_do_nothing)
    process.start()
    process.join()


def _do_nothing() -> None:
    pass


def _run(arguments: list[str], log: Path, threads: int) -> None:
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())

    import torch

    from vss_models.cli import main

    # That of this process is the server's; a command's own processes begin as they always do.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(threads)
    sys.exit(main(arguments))


__all__ = ["begin_import", "run_command"]
