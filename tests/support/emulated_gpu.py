"""Native operators as a GPU runs them, on threads of the CPU.

This is the machine of the race check (``csrc/machine/race_check.h``) without ThreadSanitizer, so
that ordinary tests reach kernels that only a GPU chooses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")
FLAGS = [
    "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-fopenmp", "-Wno-unknown-pragmas",
    "-DVSS_SMALL_CODE",
]  # fmt: skip


def load_emulated(operator: str, folder: Path, *definitions: str) -> Any:
    """Compiles an operator for the emulated GPU, as another one than the installed operator.

    Args:
        operator: Its folder in ``csrc``; it is registered under this name, and its backward pass.
        folder: Takes the compiled library.
        definitions: Macros to define.

    Returns:
        The namespace of ``torch.ops`` with the operator and its backward pass, for CPU tensors.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs a C++ compiler; {COMPILER!r} is not on PATH")
    namespace = f"emulated_{operator}"
    names = (operator, f"{operator}_backward")
    schemas = [str(getattr(torch.ops.vss_kernels, name).default._schema) for name in names]
    schema_lines = "".join(
        f'  m.def(R"({schema.removeprefix("vss_kernels::")})");\n' for schema in schemas
    )
    source, library = folder / f"{namespace}.cpp", folder / f"{namespace}.so"
    source.write_text(
        "#define VSS_RACE_CHECK\n"
        f'#include "{operator}/host.cpp"\n'
        '#include "machine/end.h"\n'
        f"TORCH_LIBRARY({namespace}, m) {{\n{schema_lines}}}\n"
        f"TORCH_LIBRARY_IMPL({namespace}, CPU, m) {{\n"
        f"  vss::race_check::{operator}::implement(m);\n"
        "}\n"
    )
    includes = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    libraries = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu"]
    macros = [f"-D{definition}" for definition in definitions]
    command = [COMPILER, *FLAGS, *macros, *includes, str(source), "-o", str(library), *libraries]
    subprocess.run(command, check=True)
    torch.ops.load_library(library)
    return getattr(torch.ops, namespace)
