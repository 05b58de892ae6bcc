"""Enough memory for the tests of tensors beyond 2^31 elements, and values to fill it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import vss_kernels

MANY = 2**31


@contextmanager
def on_a_large_gpu(backend: str, gigabytes: int) -> Iterator[None]:
    """Forces a backend on a GPU with so much free memory, or skips by name."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory, got {free:.0f}")
    with vss_kernels.backend(backend):
        yield
    torch.cuda.empty_cache()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
