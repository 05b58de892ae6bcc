"""The native kernels' exponential function against double precision."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)
def test_exponential_is_exact_to_two_units_in_the_last_place(tmp_path):
    headers = Path(__file__).parents[1] / "csrc" / "common"
    source, library = tmp_path / "exponential.cpp", tmp_path / "exponential.so"
    source.write_text(
        '#include "exponential.h"\n'
        'extern "C" void run(const float* x, float* y, long n) {\n'
        "  for (long i = 0; i < n; ++i) y[i] = vss::exponential(x[i]);\n}\n"
    )
    compiler = [os.environ.get("CXX", "c++"), "-std=c++20", "-O3", "-shared", "-fPIC"]
    subprocess.run([*compiler, f"-I{headers}", source, "-o", library], check=True)
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
