"""The native kernels' exponential function against double precision, on each instruction set."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from torch.utils.cpp_extension import include_paths

from vss_kernels._runtime import native

ISAS = native.build_info().get("isas", ["baseline"])
COMPILER = os.environ.get("CXX", "c++")


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("isa", ISAS)
def test_exponential_is_exact_to_two_units_in_the_last_place(tmp_path, isa):
    csrc = Path(__file__).parents[1] / "csrc"
    source, library = tmp_path / "exponential.cpp", tmp_path / "exponential.so"
    source.write_text(
        f"#define VSS_{isa.upper()}\n"
        '#include "machine/standard.h"\n'
        '#include "machine/target.h"\n'
        '#include "machine/block.h"\n'
        '#include "math/exponential.h"\n'
        'extern "C" void run(const float* x, float* y, long n) {\n'
        "  for (long i = 0; i < n; i += vss::kLanes) {\n"
        "    const int count = static_cast<int>(std::min<long>(n - i, vss::kLanes));\n"
        "    vss::store(y + i, vss::exponential(vss::load(x + i, count)), count);\n"
        "  }\n}\n"
        '#include "machine/end.h"\n'
    )
    includes = [f"-I{path}" for path in (csrc, *include_paths())]
    command = [COMPILER, "-std=c++20", "-O3", "-shared", "-fPIC", *includes]
    subprocess.run([*command, source, "-o", library], check=True)
    run = ctypes.CDLL(str(library)).run

    def exponential(x):
        y = np.empty_like(x)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, y))
        run(*pointers, ctypes.c_long(x.size))
        return y

    x = np.linspace(-87, 88, 3_000_017, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(exponential(x) - exact) / unit) < 2
    special = exponential(np.array([0, -88, -np.inf, np.nan], dtype=np.float32))
    assert special[0] == 1
    assert np.all(special[1:3] < 2e-38)
    assert np.isnan(special[3])
