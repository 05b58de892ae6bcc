"""What every operator promises on each of its backends: one row of the table is one operator.

The answers themselves are tested in the operators' own files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

import vss_kernels
from tests.support.contract import CONTRACT, rows_of
from tests.support.layouts import change_tensors, channels_last, expanded, reversed_order, with_gaps
from tests.support.operator_row import is_floating, registered_calls, results_and_gradients
from tests.support.repeats import assert_repeatable, assert_replays
from vss_kernels._runtime import native, triton_support
from vss_kernels._runtime.backends import operators

ROOT = Path(__file__).parents[1]
FUSED = ("native", "triton")
ALL = ("eager", *FUSED)
BACKWARD_CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")

LAYOUTS = [reversed_order, channels_last, with_gaps, expanded]

each = pytest.mark.parametrize(("row", "backend", "device"), rows_of(*ALL))
each_fused = pytest.mark.parametrize(("row", "backend", "device"), rows_of(*FUSED))


def test_every_operator_has_its_row_its_folder_its_tests_and_its_benchmark():
    assert {row.operator for row in CONTRACT.values()} == set(operators())
    for name in operators():
        assert callable(getattr(vss_kernels, name))
        assert (Path(vss_kernels.__file__).parent / name / "eager.py").is_file()
        backends = {choice.backend for choice in operators()[name].implementations}
        assert (ROOT / "csrc" / name / "host.cpp").is_file() == ("native" in backends)
        assert (ROOT / "tests" / f"test_{name}.py").is_file()
        assert (ROOT / "benchmarks" / f"bench_{name}.py").is_file()


def detached(values: Sequence[Any], keep_gradients: bool) -> tuple[Any, ...]:
    """Returns the values with leaves for tensors, which require a gradient as before or not."""

    def detach(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(keep_gradients and tensor.requires_grad)

    return tree_map_only(Tensor, detach, tuple(values))


def assert_fake_has_the_strides(operator: Any, values: Sequence[Any]) -> None:
    """Asserts what opcheck does not: a fake result is laid out as the real one."""
    values = detached(values, keep_gradients=False)
    with FakeTensorMode() as mode:
        fake = operator(*tree_map_only(Tensor, mode.from_tensor, values))
    for real, imagined in zip(tree_leaves(operator(*values)), tree_leaves(fake), strict=True):
        assert (imagined.shape, imagined.stride()) == (real.shape, real.stride())
        assert (imagined.dtype, imagined.device) == (real.dtype, real.device)


@pytest.mark.parametrize("wanted", ["all", "first", "last", "all, channels last"])
@each_fused
def test_registration(row, backend, device, wanted):
    """By opcheck, with gradients of all arguments or of one."""
    arguments = row.arguments(row.smallest_size or row.size, device)
    if wanted == "all, channels last":
        arguments = change_tensors(channels_last, arguments)
    leaves = row.leaves(arguments)
    if wanted in ("first", "last"):
        if len(leaves) < 2:
            pytest.skip("has no two gradients to choose from")
        for leaf in leaves[1:] if wanted == "first" else leaves[:-1]:
            leaf.requires_grad_(False)
    with registered_calls() as calls:
        row.run(backend, arguments)
    (forward, inputs), *backward = calls
    torch.library.opcheck(forward, detached(inputs, keep_gradients=True))
    assert_fake_has_the_strides(forward, inputs)
    # A first level of fuse_pyramid takes its gradient as it comes.
    assert len(backward) == bool(leaves) or (wanted == "first" and not backward)
    for operator, values in backward:
        torch.library.opcheck(
            operator, detached(values, keep_gradients=False), test_utils=BACKWARD_CHECKS
        )
        assert_fake_has_the_strides(operator, values)


@each_fused
def test_a_second_derivative_is_refused(row, backend, device):
    if not row.has_gradient:
        pytest.skip("has no first derivative either")
    arguments = row.arguments(row.size, device)
    leaves = row.leaves(arguments)
    gradients = row.run(backend, arguments, create_graph=True)[-len(leaves) :]
    with pytest.raises(RuntimeError, match=rf"{row.operator}.*no second derivative"):
        sum(gradient.sum() for gradient in gradients).backward()


@each_fused
def test_float64_is_refused_by_name(row, backend, device):
    arguments = row.arguments(row.size, device, torch.float64)
    message = rf"{row.operator}.*{backend}.*float64"
    with pytest.raises(vss_kernels.BackendError, match=message):
        row.run(backend, arguments)


@each
def test_compiles_once_for_all_sizes(row, backend, device):
    """Without a graph break, also the backward pass, and with the same results."""
    if backend in FUSED and not row.compiles_fused:
        pytest.skip("a compiler fuses its definition")
    torch.compiler.reset()
    counter = CompileCounterWithBackend(row.eager_compiler if backend == "eager" else "aot_eager")
    compiled = torch.compile(row.call, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for size in (row.size, row.other_size):
        arguments = row.arguments(size, device)
        row.leaves(arguments)
        expected = row.run(backend, arguments)
        with vss_kernels.backend(backend, row.operator):
            found = results_and_gradients(compiled, arguments)
        for have, want in zip(found, expected, strict=True):
            torch.testing.assert_close(have, want)
        compilations.append(counter.frame_count)
    # Not one: Dynamo counts a graph twice where it first takes a float for a variable.
    assert compilations[1] == compilations[0]


@each
def test_autocast_casts_and_gradients_keep_their_dtype(row, backend, device):
    if row.cast_by_autocast is None:
        pytest.skip("has rules of its own, tested in its own file")
    # The interpreter computes bfloat16 wrongly.
    dtype = torch.float16 if (backend, device) == ("triton", "cpu") else torch.bfloat16
    arguments = row.arguments(row.size, device)
    count = row.cast_by_autocast
    narrow = [
        value.to(dtype) if is_floating(value) and number < count else value
        for number, value in enumerate(arguments)
    ]
    mixed = [*narrow[:1], *arguments[1:]]
    stays_wide = any(is_floating(value) for value in arguments[count:])
    with torch.autocast(device, dtype, enabled=stays_wide and count > 0):
        expected = row.run(backend, narrow)
    for given in (arguments, mixed):
        leaves = row.leaves(given)
        with torch.autocast(device, dtype):
            found = row.run(backend, given)
        for have, want in zip(found, expected, strict=False):  # gradients come after
            assert have.dtype == want.dtype
            assert torch.equal(have, want)
        for gradient, leaf in zip(found[len(expected) :], leaves, strict=True):
            assert gradient.dtype == leaf.dtype
            assert gradient.isfinite().all()


@each
def test_an_empty_batch_has_results_and_gradients(row, backend, device):
    arguments = row.arguments((0, *row.size[1:]), device)
    row.leaves(arguments)
    for have, want in zip(row.run(backend, arguments), row.run("eager", arguments), strict=True):
        assert have.shape == want.shape
        assert not have.any()


@pytest.mark.parametrize("size", ["size", "large_size"])
@each_fused
def test_results_are_repeatable_and_leave_nothing_unwritten(row, backend, device, size):
    arguments = change_tensors(channels_last, row.arguments(getattr(row, size), device))
    row.leaves(arguments)
    assert_repeatable(lambda: row.run(backend, arguments), contiguous_gradients=False)


@pytest.mark.parametrize(("row", "backend", "device"), rows_of("native", devices=["cpu"]))
def test_the_number_of_threads_changes_no_bit(row, backend, device):
    arguments = row.arguments(row.large_size, device)
    row.leaves(arguments)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(row.run(backend, arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["size", "other_size", "large_size"])
@pytest.mark.parametrize(("row", "backend", "device"), rows_of("native"))
def test_native_is_accurate(row, backend, device, size, dtype):
    row.assert_accurate(row, row.arguments(getattr(row, size), device, dtype), backend)


@pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
@pytest.mark.skipif(triton_support.INTERPRETED, reason="TRITON_INTERPRET=1 tests Triton alone")
@pytest.mark.parametrize("isa", native.build_info().get("isas", []))
def test_all_instruction_sets_are_as_accurate(isa):
    """The instruction set is chosen as the extension is loaded: in a process of its own."""
    test = f"{__file__}::{test_native_is_accurate.__name__}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cpu", test],
        env={**os.environ, "VSS_KERNELS_ISA": isa},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    count = 9 * len(rows_of("native", devices=["cpu"]))
    assert f"\n{count} passed" in run.stdout, run.stdout


@pytest.mark.parametrize("layout", LAYOUTS)
@each_fused
def test_fused_takes_any_strides(row, backend, device, layout):
    arguments = change_tensors(layout, row.arguments(row.size, device))
    row.assert_accurate(row, arguments, backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("row", "backend", "device"), rows_of("eager"))
def test_eager_takes_any_strides(row, backend, device, layout):
    arguments = change_tensors(layout, row.arguments(row.size, device, torch.float64))
    contiguous = change_tensors(
        lambda tensor: tensor.clone(memory_format=torch.contiguous_format), arguments
    )
    for values in (arguments, contiguous):
        row.leaves(values)
    found, expected = row.run(backend, arguments), row.run(backend, contiguous)
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-9)
    assert found[0].is_contiguous()


@pytest.mark.parametrize("layout", [torch.clone, channels_last])
@pytest.mark.parametrize(("row", "backend", "device"), rows_of(*FUSED, devices=["cuda"]))
def test_runs_inside_a_cuda_graph(row, backend, device, layout):
    arguments = change_tensors(layout, row.arguments(row.size, device))
    row.leaves(arguments)
    assert_replays(lambda: row.run(backend, arguments))
