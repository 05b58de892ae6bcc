"""No table and no cache is built while a call is recorded, in a process that begins with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.capture_audit import AuditedCapture

ROOT = Path(__file__).parents[1]


def test_what_a_recording_leaves_is_found() -> None:
    cache: dict[str, torch.Tensor] = {}

    def call() -> torch.Tensor:
        return cache.setdefault("table", torch.ones(3)) * 2

    capture = AuditedCapture()
    capture(call)
    capture(call)
    assert capture.left == ["(3,) torch.float32"]


@pytest.mark.parametrize(
    "interpreted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["native", "triton"]
)
@pytest.mark.parametrize(("mode", "recorded"), [("streaming", 1), ("training", 2)])
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_a_fresh_process_records_nothing_but_its_results(
    name: str, mode: str, recorded: int, interpreted: bool
) -> None:
    """With the operators of a GPU, too, whose backward passes have tables of their own."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.capture_audit", name, mode],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": str(int(interpreted))},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    count, replays, left = json.loads(result.stdout.splitlines()[-1])
    assert count == recorded  # of training the step and the optimizer's update
    assert replays > recorded
    assert left == []
