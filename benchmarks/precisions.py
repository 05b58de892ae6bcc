"""The arithmetic that matrix-product operators are measured in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.harness import ON_GPU

# name: (dtype of the tensors, how PyTorch and the kernels may round products of float32)
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
}
if ON_GPU:
    PRECISIONS["tf32"] = (torch.float32, "high")


@contextmanager
def products_in(precision: str) -> Iterator[torch.dtype]:
    """Lets products round as a precision says; yields the tensors' dtype."""
    dtype, products = PRECISIONS[precision]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        yield dtype
    finally:
        torch.set_float32_matmul_precision(before)


def named(case: str, precision: str) -> str:
    """Returns a case's name in a precision; the dtype alone would not tell TF32 from float32."""
    return f"{case} TF32" if precision == "tf32" else case
