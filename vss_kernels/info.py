"""What this install can do: ``python -m vss_kernels.info``.

Prints versions, how the native extension was built (or why it is not there), the devices, and for
each operator which backends can run here.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

import torch

import vss_kernels
from vss_kernels._runtime import backends, native


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return ", ".join(
        f"{torch.cuda.get_device_name(index)} "
        f"(compute capability {'.'.join(map(str, torch.cuda.get_device_capability(index)))})"
        for index in range(torch.cuda.device_count())
    )


def _operator_table() -> list[str]:
    rows: list[tuple[str, ...]] = [("operator", *backends.BACKENDS)]
    reasons: list[str] = []
    for name, operator in sorted(backends.operators().items()):
        states = dict.fromkeys(backends.BACKENDS, "-")
        for implementation in operator.implementations:
            reason = implementation.available()
            states[implementation.backend] = "yes" if reason is None else "no"
            line = f"{implementation.backend}: {reason}"
            if reason is not None and line not in reasons:
                reasons.append(line)
        rows.append((name, *(states[backend] for backend in backends.BACKENDS)))
    width = max(len(row[0]) for row in rows)
    table = [f"  {row[0]:<{width}}" + "".join(f"  {cell:<7}" for cell in row[1:]) for row in rows]
    return [line.rstrip() for line in table] + [f"  {reason}" for reason in reasons]


def report() -> str:
    """Returns the report as text."""
    lines = [
        f"vss-kernels {vss_kernels.__version__} in {vss_kernels.__path__[0]}",
        f"Python {platform.python_version()}, PyTorch {torch.__version__} "
        f"(CUDA {torch.version.cuda or 'none'}), Triton {_version('triton')}",
        f"devices: {_devices()}",
        f"native extension: {native.problem() or 'loaded'}",
    ]
    lines += [f"  {key}: {value}" for key, value in native.build_info().items()]
    lines += ["operators (yes = can run here, - = has no such backend):", *_operator_table()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report.

    Args:
        arguments: Command-line options; those of the process if None.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: If the options are not valid.
    """
    parser = argparse.ArgumentParser(
        prog="vss info", description="Print versions, devices and which backends can run here."
    )
    parser.parse_args(arguments)
    print(report(), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        # The reader, such as `head`, has all it wants; what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
