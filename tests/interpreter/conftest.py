"""Tests in this folder run Triton's kernels: on the CPU in a run of their own, or on a GPU.

Triton reads TRITON_INTERPRET as it is imported, and the setting holds for the whole process:
``TRITON_INTERPRET=1 pytest tests/interpreter``. In a run without it they use the GPU, and are
skipped by name where there is none.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vss_kernels._runtime import triton_support


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests where there is neither an interpreter nor a GPU."""
    if triton_support.INTERPRETED or torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 or a CUDA device"))


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden answers are float32; on a GPU cuDNN's convolutions would round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
