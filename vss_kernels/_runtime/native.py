"""Loads the compiled extension and says, where it is not there, why.

"Not built" (the install had no compiler, or was told to skip it), "failed to load" (it is there
but broken, for instance built for another PyTorch) and "out of date" (built from older sources than
this Python code) are different conditions, so they are kept apart.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

OPERATORS = (
    "add_norm_cpu",
    "aggregate_affinity",
    "attend_selected_cpu",
    "depthwise_gelu",
    "focal_attend",
    "focal_pool",
    "fuse_pyramid",
    "halved_pyramid_cpu",
    "masked_affinity_cpu",
    "reduced_attention_cpu",
    "resized_rows_cpu",
    "select_tokens_cpu",
    "upsample_argmax",
    "upsample_cross_entropy",
)
"""The operators that the extension must register, as in ``csrc/library.cpp``, without backwards."""

INTERFACE = 4
"""What this Python code expects of the extension, as in ``csrc/library.cpp``."""

ISAS = ("baseline", "avx2", "avx512")
"""Instruction sets that CPU kernels are compiled for, slowest first (``VSS_KERNELS_ISA``)."""

_REBUILD = "rebuild it: pip install --no-build-isolation --force-reinstall --no-deps ."
_extension: ModuleType | None = None
_problem: str | None = None


def _recorded_build() -> dict[str, Any]:
    """What the build wrote down beside the extension; readable even when it cannot be loaded."""
    path = Path(__file__).parent.with_name("_build.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _load() -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec("vss_kernels._C") is None:
        return None, (
            "the native extension was not built (python -m vss_kernels.info tells more); "
            "reinstall with a C++ compiler on PATH: pip install --no-build-isolation ."
        )
    try:
        extension = importlib.import_module("vss_kernels._C")
    except (ImportError, OSError) as error:
        built_for = _recorded_build().get("torch", "an unknown version")
        return None, (
            f"the native extension is there but failed to load: {error} "
            f"(built for PyTorch {built_for}, this is PyTorch {torch.__version__}); "
            f"{_REBUILD}"
        )
    lacking = [name for name in OPERATORS if not hasattr(torch.ops.vss_kernels, name)]
    if lacking:
        return None, (
            f"the native extension is out of date: it lacks {', '.join(lacking)}; {_REBUILD}"
        )
    built = getattr(extension, "interface", 1)
    if built != INTERFACE:
        return None, (
            f"the native extension is out of date: its interface is number {built}, and this "
            f"Python code is for number {INTERFACE}; {_REBUILD}"
        )
    return extension, None


def _wanted_isa() -> str:
    """Reads ``VSS_KERNELS_ISA``.

    Raises:
        ValueError: It names no instruction set.
    """
    wanted = os.environ.get("VSS_KERNELS_ISA", "")
    if wanted and wanted not in ISAS:
        raise ValueError(f"VSS_KERNELS_ISA must be one of {', '.join(ISAS)}, got {wanted!r}")
    return wanted


def _check_isa(extension: ModuleType, wanted: str) -> None:
    """Refuses an instruction set that this machine, or this build, does not have."""
    info = extension.build_info()
    if wanted and wanted != info["isa"]:
        raise ValueError(
            f"VSS_KERNELS_ISA={wanted}, but on this CPU this build can run "
            f"{', '.join(info['isas'])}"
        )


def problem() -> str | None:
    """Returns ``None`` when the extension is loaded, else why it is not."""
    return _problem


def extension() -> ModuleType | None:
    """Returns the loaded extension."""
    return _extension


def build_info() -> dict[str, Any]:
    """Returns how the extension was built: versions, CUDA architectures, flags, OpenMP.

    Also which instruction set its CPU kernels use, ``isa``, of those that can run here, ``isas``.
    Empty when the extension was not built.
    """
    info = _recorded_build()
    if _extension is not None:
        info.update(_extension.build_info())
    return info


def has_cuda() -> bool:
    """Whether the loaded extension holds CUDA kernels."""
    return _extension is not None and bool(_extension.build_info()["cuda"])


def runs_on(capability: tuple[int, int], arch_list: str) -> bool:
    """Whether machine code for ``arch_list`` runs on a GPU of compute capability ``capability``.

    Code for a capability runs on GPUs of the same major version and no smaller minor one; PTX
    (``+PTX``) is compiled by the driver for every later GPU.

    Args:
        capability: Major and minor version.
        arch_list: As ``TORCH_CUDA_ARCH_LIST``, for instance ``"8.0;9.0+PTX"``.
    """
    for architecture in arch_list.replace(" ", ";").split(";"):
        number, _, ptx = architecture.partition("+")
        if not number:
            continue
        major, minor = (int("".join(filter(str.isdigit, part))) for part in number.split("."))
        if ptx and capability >= (major, minor):
            return True
        if capability[0] == major and capability[1] >= minor:
            return True
    return False


@torch.compiler.assume_constant_result  # Dynamo need not trace how a device is asked
def _gpu_problem(index: int) -> str | None:
    """Why the extension cannot run on a CUDA device, or ``None``."""
    return _find_gpu_problem(index)


@functools.cache
def _find_gpu_problem(index: int) -> str | None:
    if not _HAS_CUDA:
        return "the native extension was built without CUDA"
    if not torch.cuda.is_available():
        return None  # a fake tensor, of a trace that is made without a GPU
    capability = torch.cuda.get_device_capability(index)
    arch_list = build_info()["cuda_arch_list"]
    if runs_on(capability, arch_list):
        return None
    return (
        f"the native extension was built for compute capabilities {arch_list}, and this GPU has "
        f"{capability[0]}.{capability[1]}; rebuild it with TORCH_CUDA_ARCH_LIST="
        f"{capability[0]}.{capability[1]}"
    )


def refuses(tensor: torch.Tensor) -> str | None:
    """Why no native kernel can take ``tensor``'s device and dtype, or ``None``."""
    if tensor.device.type not in ("cpu", "cuda"):
        return f"it runs on cpu and cuda tensors, not on {tensor.device.type}"
    if tensor.device.type == "cuda":
        problem = _gpu_problem(tensor.device.index or 0)
        if problem is not None:
            return problem
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, float16 and bfloat16, not in {tensor.dtype}"
    return None


def refuses_cpu(tensor: torch.Tensor) -> str | None:
    """Why no kernel that is native on the CPU alone can take ``tensor``, or ``None``."""
    if tensor.device.type == "cuda":
        return "its native kernel is for the CPU; a GPU's tensor cores are used through Triton"
    return refuses(tensor)


_wanted = _wanted_isa()
_extension, _problem = _load()
if _extension is not None:
    _check_isa(_extension, _wanted)
_HAS_CUDA = has_cuda()
