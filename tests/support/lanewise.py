"""Functions of the native kernels' SIMD layer, compiled for one instruction set."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.cpp_extension import include_paths

COMPILER = os.environ.get("CXX", "c++")


def compile_lanewise(
    header: str, expression: str, isa: str, folder: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns ``expression``, of a ``vss::Floats x``, as a function of float32 arrays.

    Args:
        header: The file in ``csrc`` that the expression needs.
        expression: C++ that gives a register of floats.
        isa: Instruction set, in small letters.
        folder: Takes source and library.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs a C++ compiler; {COMPILER!r} is not on PATH")
    csrc = Path(__file__).parents[2] / "csrc"
    source, library = folder / "lanewise.cpp", folder / "lanewise.so"
    source.write_text(
        f"#define VSS_{isa.upper()}\n"
        '#include "machine/standard.h"\n'
        '#include "machine/target.h"\n'
        '#include "machine/block.h"\n'
        f'#include "{header}"\n'
        'extern "C" void run(const float* from, float* to, long n) {\n'
        "  for (long i = 0; i < n; i += vss::kLanes) {\n"
        "    const int count = static_cast<int>(std::min<long>(n - i, vss::kLanes));\n"
        "    const vss::Floats x = vss::load(from + i, count);\n"
        f"    vss::store(to + i, {expression}, count);\n"
        "  }\n}\n"
        '#include "machine/end.h"\n'
    )
    includes = [f"-I{path}" for path in (csrc, *include_paths())]
    command = [COMPILER, "-std=c++20", "-O3", "-shared", "-fPIC", *includes]
    subprocess.run([*command, source, "-o", library], check=True)
    run = ctypes.CDLL(str(library)).run

    def function(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, y))
        run(*pointers, ctypes.c_long(x.size))
        return y

    return function


def error_in_units(values: np.ndarray, exact: np.ndarray) -> float:
    """Returns the largest error in units of the last place of ``exact``, which is float64."""
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(values - exact) / unit))
