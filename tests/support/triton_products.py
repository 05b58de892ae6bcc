"""Matrix products of Triton's interpreter, summed in the order in which a GPU sums them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


def add_product(left: np.ndarray, right: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns ``start + left @ right`` in float32, one fused multiply-add after the other."""
    accumulator = start
    for k in range(left.shape[1]):
        # In float64 a product of float32 numbers is exact, so only the sum is rounded.
        exact = left[:, k, None].astype(np.float64) * right[None, k] + accumulator
        accumulator = exact.astype(np.float32)
    return accumulator


def sum_products_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the interpreter sum full float32 products as compiled kernels do, k after k.

    NumPy hands them to a BLAS, whose order depends on the CPU and on the side that an operand is
    on. A backward kernel that has keys on the left would then find other logits than the forward
    kernel, which had queries there, and a softmax of logits of a hundred would be wrong by 1e-5.
    """
    by_numpy = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.data.ndim == 2 and a.data.dtype == b.data.dtype == d.data.dtype == np.float32:
            return interpreter.TensorHandle(add_product(a.data, b.data, d.data), d.dtype.scalar)
        return by_numpy(builder, a, b, d, *options)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
