"""Functions that are compiled and recorded, where there may be nothing to compile them with."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.recorded_calls import RecordedCalls
from vss_models.inference.graphs import SizedFunction

X = torch.arange(6.0)


def no_compiler(graph: Any, inputs: Any) -> Any:
    """A backend of torch.compile on a machine that lacks what it needs."""
    raise OSError("no compiler was found\nand much more")


def double(x: Tensor) -> Tensor:
    """What is to be compiled."""
    if x.dtype == torch.int64:
        raise TypeError("x must be a floating-point tensor")
    return 2 * x


def function(capture: RecordedCalls | None = None, falls_back: bool = True) -> SizedFunction:
    """Doubles a tensor, where nothing can be compiled."""
    fast = torch.compile(double, backend=no_compiler)
    return SizedFunction(fast, double, capture, "the doubling", falls_back=falls_back)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def test_what_cannot_be_compiled_is_recorded_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    capture = RecordedCalls()
    call = function(capture)
    with caplog.at_level(logging.WARNING, "vss_models"):
        for number in range(4):
            assert torch.equal(call(X + number), 2 * (X + number))
        assert torch.equal(call(X[:3]), 2 * X[:3])
    (record,) = (r for r in caplog.records if r.name == "vss_models")
    assert record.getMessage() == (
        "the doubling is not compiled, because that failed: OSError: no compiler was found"
    )
    assert (capture.recorded, capture.replayed) == (1, 2)


def test_what_must_be_compiled_says_why_it_cannot() -> None:
    with pytest.raises(RuntimeError, match="no compiler was found"):
        function(falls_back=False)(X)


def test_a_fault_of_the_input_is_not_taken_for_the_compilers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    call = function()
    with (
        caplog.at_level(logging.WARNING, "vss_models"),
        pytest.raises(TypeError, match="x must be a floating-point tensor"),
    ):
        call(X.long())
    assert not [r for r in caplog.records if r.name == "vss_models"]
    assert call.falls_back
