"""Builds the native extension with CUDA for this machine's GPU, or takes one that is there.

``python -m benchmarks.gpu.build [--again]``. A prebuilt extension that loads and has CUDA kernels
is kept: on a borrowed GPU, minutes count. Debug information, half of its size, is stripped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.steps import ROOT
from vss_kernels._runtime import native

MIB = 2**20


def strip(library: Path) -> None:
    """Removes debug information and local symbols from a shared library, if ``strip`` is there."""
    program = shutil.which("strip")
    if program is None:
        print("strip was not found: the extension keeps its debug information")
        return
    before = library.stat().st_size
    temporary = library.with_suffix(".stripped")
    subprocess.run([program, "--strip-unneeded", "-o", temporary, library], check=True)
    os.replace(temporary, library)
    print(
        f"{library.name}: {before / MIB:.1f} MiB, stripped {library.stat().st_size / MIB:.1f} MiB"
    )


def build() -> int:
    """Compiles the extension in place; returns the exit status."""
    environment = {**os.environ, "VSS_KERNELS_CUDA": "1", "VSS_KERNELS_EXTENSION": "1"}
    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        environment.setdefault("TORCH_CUDA_ARCH_LIST", capability)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status == 0:
        for library in (ROOT / "vss_kernels").glob("_C*.so"):
            strip(library)
    return status


def main() -> int:
    """Builds unless there is nothing to do; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="build even if an extension is there")
    reason = native.problem() or (None if native.has_cuda() else "it was built without CUDA")
    if reason is None and not parser.parse_args().again:
        print(f"taking the extension that is there: {native.build_info()}")
        return 0
    print(f"building: {reason or 'as asked for'}", flush=True)
    return build()


if __name__ == "__main__":
    raise SystemExit(main())
