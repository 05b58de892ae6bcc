"""The CUDA tools: where they are, and compiling a source to a cubin."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from vss_models.atomic import atomic_write

ROOT = Path(__file__).parents[2]
# As setup.py gives them, with what PyTorch's CUDAExtension adds, and line numbers, which change no
# instruction.
FLAGS = [
    "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-lineinfo",
    "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__",
    "--compiler-options", "-fPIC", "-DTORCH_EXTENSION_NAME=_C", f"-I{ROOT / 'csrc'}",
]  # fmt: skip


class ToolError(RuntimeError):
    """A program that is needed is missing or failed."""


def toolkit() -> Path | None:
    """Returns the CUDA toolkit's folder; nvcc is asked, as the one on PATH may be a wrapper."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return Path(os.environ[name])
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    dry_run = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ TOP=(.+)$", dry_run, re.M)
    return Path(found.group(1).strip()).resolve() if found else None


def find_tool(name: str) -> str:
    """Returns a program's path: from PATH, the CUDA toolkit or the installed Triton.

    Raises:
        ToolError: It is in none of them.
    """
    on_path = shutil.which(name)
    if on_path:
        return on_path
    home = toolkit()
    places = [] if home is None else [home / "bin"]
    triton = importlib.util.find_spec("triton")  # found, not imported
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for place in places:
        if os.access(place / name, os.X_OK):
            return str(place / name)
    raise ToolError(
        f"{name} was not found: not on PATH, not in a CUDA toolkit (set CUDA_HOME to its folder), "
        "not in Triton"
    )


def run_tool(command: Sequence[str]) -> str:
    """Runs a program; returns what it printed, errors after all else.

    Raises:
        ToolError: It failed; the message holds what it printed.
    """
    result = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT
    )
    output = result.stdout + result.stderr
    if result.returncode != 0:
        raise ToolError(f"{command[0]} failed (exit status {result.returncode}):\n{output.strip()}")
    return output


def included(source: Path) -> list[Path]:
    """Returns a source and the files of csrc that it includes, directly or not."""
    found: list[Path] = []
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.append(path)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            for folder in (path.parent, ROOT / "csrc"):
                if (folder / name).is_file():
                    waiting.append((folder / name).resolve())
                    break
    return sorted(found)


def torch_includes() -> list[str]:
    """Returns the flags that name the headers of PyTorch and Python.

    Raises:
        ToolError: PyTorch is not installed.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise ToolError("this interpreter has no PyTorch, whose headers the operators include")
    headers = Path(torch.origin).parent / "include"
    folders = [headers, headers / "torch" / "csrc" / "api" / "include"]
    return [f"-I{folder}" for folder in (*folders, sysconfig.get_paths()["include"])]


def cuda_source(operator: str, folder: Path) -> Path:
    """Writes the file that nvcc compiles for an operator, as setup.py does; returns its path.

    Args:
        operator: Its folder in csrc.
        folder: Takes the file.
    """
    source = folder / f"{operator}_cuda.cu"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(source) as temporary:
        temporary.write_text(
            f'#define VSS_CUDA\n#include "{operator}/host.cpp"\n#include "machine/end.h"\n'
        )
    return source


def compile_cubin(source: Path, architecture: str, folder: Path) -> tuple[Path, str]:
    """Compiles a CUDA source, unless the same one was compiled before.

    Args:
        source: The file.
        architecture: Such as ``sm_90``.
        folder: Takes the cubin and what ptxas said.

    Returns:
        The cubin and the text of ptxas: registers and spills of each kernel.

    Raises:
        ToolError: nvcc is missing or failed.
    """
    nvcc = find_tool("nvcc")
    fingerprint = hashlib.sha256(run_tool([nvcc, "--version"]).encode())
    for text in (architecture, *FLAGS):
        fingerprint.update(text.encode())
    for path in included(source):
        fingerprint.update(path.read_bytes())
    name = f"{source.stem}.{architecture}.{fingerprint.hexdigest()[:12]}"
    cubin, log = folder / f"{name}.cubin", folder / f"{name}.txt"
    if not (cubin.exists() and log.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(cubin) as temporary:
            command = [nvcc, *FLAGS, *torch_includes(), f"-arch={architecture}", "-cubin"]
            output = run_tool([*command, "-Xptxas", "-v", str(source), "-o", str(temporary)])
        with atomic_write(log) as temporary:
            temporary.write_text(output)
    return cubin, log.read_text()
