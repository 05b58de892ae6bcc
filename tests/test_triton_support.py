"""Why Triton kernels cannot run somewhere, and how their products round."""

from __future__ import annotations

import pytest
import torch

import vss_kernels
from vss_kernels._runtime import triton_support

not_interpreted = pytest.mark.skipif(
    triton_support.INTERPRETED, reason="TRITON_INTERPRET=1 runs kernels on the CPU"
)


def test_a_missing_install_is_said(monkeypatch):
    monkeypatch.setattr(triton_support, "_INSTALLED", False)
    assert "Triton is not installed" in str(triton_support.problem())


@not_interpreted
def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(triton_support, "_has_device", False)
    tokens = torch.zeros(1, 4, 8)
    with (
        vss_kernels.backend("triton"),
        pytest.raises(vss_kernels.BackendError, match=r"select_tokens.*no CUDA device"),
    ):
        vss_kernels.select_tokens(tokens, tokens[None], 2, 1)


@not_interpreted
def test_cpu_tensors_are_refused_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(triton_support, "_has_device", True)
    tokens, index = torch.zeros(1, 4, 8), torch.zeros(1, 1, 2, dtype=torch.int64)
    with (
        vss_kernels.backend("triton"),
        pytest.raises(vss_kernels.BackendError, match="only under TRITON_INTERPRET=1"),
    ):
        vss_kernels.masked_affinity(tokens, tokens[None], index)


def test_other_devices_and_dtypes_are_refused():
    assert "not on meta" in str(triton_support.refuses(torch.zeros(1, device="meta")))
    if triton_support.INTERPRETED:
        refused = torch.zeros(1, dtype=torch.float64)
        assert "not in torch.float64" in str(triton_support.refuses(refused))


def test_products_round_as_pytorch_allows():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert triton_support.dot_precision() == "tf32"
        torch.set_float32_matmul_precision("highest")
        assert triton_support.dot_precision() == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
