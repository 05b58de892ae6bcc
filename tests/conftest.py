"""Fixtures and rules for the whole test suite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from vss_kernels._runtime import triton_support

# What `vss_models` needs for videos, training and its command line, and a machine for operators may
# lack.
OPTIONAL_PACKAGES = ("av", "jsonargparse", "lightning", "rich", "tensorboard", "torchmetrics")


class _TestModule(pytest.Module):
    """A test file; skipped by name, not an error of the whole run, without an optional package."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            cause = error.__cause__
            missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
            package = (missing or "").partition(".")[0]
            if package in OPTIONAL_PACKAGES:
                reason = f"{self.path.name} needs the package {package}"
                pytest.skip(reason, allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return _TestModule.from_parent(parent, path=module_path)


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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set, made anew for each test file."""
    # Imported here: it needs packages that a machine for operators may lack.
    from tests.support.tiny_training import make_dataset

    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def float32_products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets how float32 products round, and puts it back."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture(autouse=True)
def _products_in_a_gpus_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes must not depend on the CPU whose BLAS the interpreter would use."""
    if triton_support.INTERPRETED:
        from tests.support.triton_products import sum_products_in_order

        sum_products_in_order(monkeypatch)
