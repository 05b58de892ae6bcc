"""Fixtures and rules for the whole test suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU tests by name where there is no GPU, so that a report shows what was not run."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float32_products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets how float32 products round, and puts it back."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield
    torch.backends.cuda.matmul.fp32_precision = before
