"""The least time that a GPU could need, by the rates of its large copies and matrix products."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch

GIB = 2**30


def seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median GPU time of a call."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times[3:])


@functools.cache
def copy_rate() -> float:
    """Bytes a second, read and written, of a copy that no cache can hold."""
    source = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * GIB / seconds(lambda: target.copy_(source))


@functools.cache
def product_rate(dtype: torch.dtype, products: str) -> float:
    """Floating-point operations a second of a large matrix product.

    Args:
        dtype: Of the matrices.
        products: How products of float32 round, as in torch.set_float32_matmul_precision; it must
            be what is set.
    """
    assert torch.get_float32_matmul_precision() == products
    side = 8192
    left, right = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right)


def floor(moved: int, flops: int, dtype: torch.dtype) -> float:
    """Seconds that the bytes or the operations take at least, whichever is more."""
    least = moved / copy_rate()
    if flops:
        rate = product_rate(dtype, torch.get_float32_matmul_precision())
        least = max(least, flops / rate)
    return least
