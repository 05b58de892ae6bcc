"""Compiles Triton kernels ahead of time, in exactly the launches that an operator makes.

No GPU is needed: kernels are replaced by recorders, the operator runs on CPU tensors, and what it
would have launched is compiled for a named architecture.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# What any kernel may take: two blocks fit on a multiprocessor of an A100 or H100.
SHARED_BYTES = 80 * 1024
SPILLED_BYTES = 64

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


class Launch(NamedTuple):
    """One recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Resources(NamedTuple):
    """What a compiled kernel takes of a multiprocessor, and spills."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


def record_launches(modules: Iterable[ModuleType], run: Callable[[], object]) -> list[Launch]:
    """Runs ``run`` with the kernels of ``modules`` recording their launches instead of running."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def record(*args: Any, **kwargs: Any) -> None:
                named = dict(zip(self.kernel.arg_names, args, strict=False))
                launches.append(Launch(self.kernel, grid, {**named, **kwargs}))

            return record

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, value in list(vars(module).items()):
                if name.endswith("_kernel"):
                    patch.setattr(module, name, Recorder(value))
        run()
    return launches


class Specialization(NamedTuple):
    """What a kernel is compiled for; launches that agree in it share one compiled kernel."""

    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    divisible_by_16: tuple[int, ...]


def specialization(launch: Launch) -> Specialization:
    """What Triton compiles a launch for: types, constants, arguments that are multiples of 16."""
    types, constants, divisible = [], [], []
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        is_size = type(value) is int and not parameter.do_not_specialize
        if parameter.is_constexpr or (is_size and value == 1):
            kind = "constexpr"
            constants.append((position, value))
        elif isinstance(value, torch.Tensor):
            kind = _POINTERS[value.dtype]
            divisible.append(position)
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind = "i32" if abs(value) < 2**31 else "i64"
            if is_size and value % 16 == 0:
                divisible.append(position)
        types.append((parameter.name, kind))
    return Specialization(tuple(types), tuple(constants), tuple(divisible))


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compiles a launch for ``sm_<capability>`` and returns what it uses."""
    compiled = _compiled(launch, capability)
    return Resources(
        *_registers_and_spills(compiled.asm["ptx"], capability, compiled.metadata.shared)
    )


def compiled_ptx(launch: Launch, capability: int) -> str:
    """Compiles a launch for ``sm_<capability>`` and returns its PTX."""
    return _compiled(launch, capability).asm["ptx"]


def assert_rounded(launches: Iterable[Launch], capability: int, expected: set[str]) -> None:
    """Asserts that kernels round what they multiply in TF32 to the nearest number.

    Args:
        launches: Launches of float32 tensors; of those of one kernel the first is looked at.
        capability: As for :func:`compile_launch`.
        expected: Names of the kernels that must multiply in TF32.
    """
    found = {}
    for launch in launches:
        if launch.arguments.get("PRECISION") == "tf32":
            found.setdefault(launch.kernel.__name__, launch)
    assert set(found) == expected
    for name, launch in found.items():
        ptx = compiled_ptx(launch, capability)
        products = re.findall(r"(?:wgmma\.mma_async|mma)\.sync\.aligned\.\w+\S*tf32", ptx)
        assert products, name
        assert "cvt.rna.tf32.f32" in ptx, name


def _compiled(launch: Launch, capability: int) -> Any:
    types, constants, divisible = specialization(launch)
    options = {
        name: value
        for name, value in launch.arguments.items()
        if name in ("num_warps", "num_stages")
    }
    source = ASTSource(
        launch.kernel,
        dict(types),
        {(position,): value for position, value in constants},
        {(position,): [["tt.divisibility", 16]] for position in divisible},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def assert_fit(launches: Iterable[Launch], capability: int) -> None:
    """Asserts that launches compile for ``sm_<capability>`` and leave a multiprocessor room."""
    for launch in launches:
        used = compile_launch(launch, capability)
        assert used.shared_bytes <= SHARED_BYTES, (launch.kernel.__name__, used)
        assert used.spilled_bytes <= SPILLED_BYTES, (launch.kernel.__name__, used)


def _registers_and_spills(ptx: str, capability: int, shared: int) -> tuple[int, int, int]:
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None
    assert str(capability) in architecture[1]
    report = subprocess.run(
        [assembler, "-v", f"--gpu-name={architecture[1]}", "-", "-o", "/dev/null"],
        input=ptx,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    spills = sum(int(size) for size in re.findall(r"(\d+) bytes spill stores", report))
    return int(re.findall(r"Used (\d+) registers", report)[0]), shared, spills
