"""Whether nvcc still takes every operator, where there is one: ``make lint`` asks.

The ordinary tests compile the operators with the CPU's compiler only, which takes more than nvcc
does. Nothing is optimised and no machine code is made here, so that most of the time goes into
PyTorch's headers; an operator is left out while none of its files has changed since nvcc took it.
nvcc reads a source twice, for the GPU and for the host, and refuses other things each time: a
function of both that calls one of the GPU alone passes the first and not the second.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_model.tools import (
    FLAGS,
    ROOT,
    ToolError,
    cuda_source,
    find_tool,
    included,
    run_tool,
    torch_includes,
)
from vss_models.atomic import atomic_write

TAKEN = ROOT / "build" / "nvcc_check"
"""An empty file for each state of an operator that nvcc took."""

# Debug code is code that is not optimised. The oldest architecture that setup.py builds for.
_FLAGS = [*(flag for flag in FLAGS if flag not in ("-O3", "-lineinfo")), "-G", "-arch=compute_80"]


def cuda_operators() -> list[str]:
    """Returns the folders of csrc that setup.py compiles for CUDA.

    Raises:
        ToolError: setup.py no longer lists those that it does not.
    """
    found = re.search(r"^CPU_ONLY = (\(.*?\))", (ROOT / "setup.py").read_text(), re.M | re.S)
    if found is None:
        raise ToolError("setup.py has no list CPU_ONLY of operators without CUDA")
    without = ast.literal_eval(found.group(1))
    names = (path.parent.name for path in ROOT.glob("csrc/*/host.cpp"))
    return sorted(name for name in names if name not in without)


def check(operator: str, nvcc: str, folder: Path) -> bool:
    """Lets nvcc read an operator for the GPU and the host, unless it took the same files before.

    Args:
        operator: Its folder in csrc.
        nvcc: The compiler.
        folder: Remembers what was taken.

    Returns:
        Whether nvcc was run.

    Raises:
        ToolError: nvcc does not take it; the message holds what nvcc says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = cuda_source(operator, Path(scratch))
        fingerprint = hashlib.sha256("\n".join([run_tool([nvcc, "--version"]), *_FLAGS]).encode())
        for path in included(source):
            fingerprint.update(path.read_bytes())
        taken = folder / f"{operator}.{fingerprint.hexdigest()[:12]}"
        if taken.exists():
            return False
        output = str(Path(scratch) / "check.cu.cpp.ii")
        run_tool([nvcc, *_FLAGS, *torch_includes(), "--cuda", str(source), "-o", output])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(taken) as temporary:
        temporary.touch()
    return True


def main() -> int:
    """Checks all operators; returns 0 where nvcc takes them or is not there, else 1."""
    try:
        nvcc = find_tool("nvcc")
    except ToolError as error:
        print(f"skipped whether nvcc takes the operators: {error}")
        return 0
    status = 0
    for operator in cuda_operators():
        try:
            run = check(operator, nvcc, TAKEN)
            print(f"nvcc takes {operator}{'' if run else ', as before'}", flush=True)
        except ToolError as error:
            print(f"nvcc does not take csrc/{operator}/host.cpp\n{error}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
