"""The native kernels' exponential and logarithm in float64's eyes, on each instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.lanewise import compile_lanewise, error_in_units
from vss_kernels._runtime import native

ISAS = native.build_info().get("isas", ["baseline"])


@pytest.mark.parametrize("isa", ISAS)
def test_exponential_is_exact_to_two_units_in_the_last_place(tmp_path, isa):
    exponential = compile_lanewise("math/exponential.h", "vss::exponential(x)", isa, tmp_path)
    x = np.linspace(-87, 88, 3_000_017, dtype=np.float32)
    assert error_in_units(exponential(x), np.exp(x.astype(np.float64))) < 2
    special = exponential(np.array([0, -88, -np.inf, np.nan], dtype=np.float32))
    assert special[0] == 1
    assert np.all(special[1:3] < 2e-38)
    assert np.isnan(special[3])


@pytest.mark.parametrize("isa", ISAS)
def test_logarithm_is_exact_to_one_unit_in_the_last_place(tmp_path, isa):
    logarithm = compile_lanewise("math/logarithm.h", "vss::logarithm(x)", isa, tmp_path)
    bits = np.arange(0x00800000, 0x7F800000, 701, dtype=np.int32)  # all powers of two, some of each
    near_one = np.linspace(0.5, 2, 3_000_017, dtype=np.float32)
    x = np.concatenate([bits.view(np.float32), near_one])
    assert error_in_units(logarithm(x), np.log(x.astype(np.float64))) < 1
    special = logarithm(np.array([1, np.inf, np.nan], dtype=np.float32))
    assert special[0] == 0
    assert special[1] == np.inf
    assert np.isnan(special[2])
