"""Builds the native extension of vss_kernels; all else about the package is in pyproject.toml.

Environment switches:
    VSS_KERNELS_EXTENSION   1 = fail if it cannot be built, 0 = do not build it (default: build it
                            where PyTorch and a C++ compiler are found)
    VSS_KERNELS_CUDA        1 = fail without a CUDA toolkit, 0 = CPU only (default: where one is
                            found; a GPU is not needed to build)
    TORCH_CUDA_ARCH_LIST    GPU architectures to build for (default: "8.0;9.0+PTX")
    CUDA_HOME               the toolkit's own folder, if it is not found by itself
    MAX_JOBS                compilers to run at a time (default: one per core)
    VSS_KERNELS_SANITIZE    address = CPU build under AddressSanitizer and
                            UndefinedBehaviorSanitizer, thread = the race check: what a GPU runs, on
                            CPU threads under ThreadSanitizer
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
DEFAULT_ARCH_LIST = "8.0;9.0+PTX"
CPU_ONLY = (  # without a CUDA kernel: on a GPU they are written in Triton, or are PyTorch's
    "add_norm",
    "attend_selected",
    "focal_attention",
    "halved_pyramid",
    "masked_affinity",
    "reduced_attention",
    "resized_rows",
    "select_tokens",
)
SANITIZE_FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}


def announce(message: str) -> None:
    """Prints a line that cannot be overlooked in a build log."""
    print(f"\n*** vss-kernels: {message}\n", file=sys.stderr, flush=True)


def switch(name: str) -> bool | None:
    """Reads an environment switch: True, False, or None where it is not set."""
    text = os.environ.get(name, "").strip().lower()
    if text in ("", "auto"):
        return None
    if text not in ("0", "1"):
        raise SystemExit(f"{name} must be 0, 1 or auto, got {text!r}")
    return text == "1"


def is_toolkit(folder: Path) -> bool:
    return (folder / "bin" / "nvcc").exists() and (folder / "include" / "cuda_runtime.h").exists()


def find_toolkit() -> Path | None:
    """Returns the CUDA toolkit's own folder.

    An nvcc on PATH may be a wrapper script outside the toolkit, so nvcc itself is asked where it
    lives: a dry run prints its TOP folder.
    """
    candidates = [
        Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ
    ]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
        top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, flags=re.MULTILINE)
        if top is not None:
            candidates.append(Path(top.group(1).strip()).resolve())
        candidates.append(Path(nvcc).resolve().parent.parent)
    candidates.append(Path("/usr/local/cuda"))
    return next((folder for folder in candidates if is_toolkit(folder)), None)


def toolkit_for(torch_cuda: str | None) -> Path | None:
    """Returns the toolkit to build with, or None for a CPU-only extension (saying why)."""
    wanted = switch("VSS_KERNELS_CUDA")
    if wanted is False:
        return None
    toolkit = find_toolkit()
    if toolkit is None:
        reason = "no CUDA toolkit was found (set CUDA_HOME to its folder)"
    elif torch_cuda is None:
        reason = "this PyTorch was built without CUDA"
    else:
        version = subprocess.run(
            [toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(r"release (\d+)\.", version)
        if found is not None and found.group(1) == torch_cuda.split(".")[0]:
            return toolkit
        reason = f"the toolkit in {toolkit} does not fit PyTorch's CUDA {torch_cuda}"
    if wanted:
        raise SystemExit(f"VSS_KERNELS_CUDA=1, but {reason}")
    announce(f"building for the CPU only: {reason}")
    return None


def compression_flags(nvcc: Path) -> list[str]:
    """Returns what makes machine code several times smaller, where nvcc has it (12.8 on)."""
    text = subprocess.run([nvcc, "--help"], capture_output=True, text=True, check=True).stdout
    return ["--compress-mode=size"] if "--compress-mode" in text else []


def native_extension() -> dict[str, object]:
    """Returns the setup() arguments that build the extension; none where it cannot be built."""
    wanted = switch("VSS_KERNELS_EXTENSION")
    if wanted is False:
        announce("VSS_KERNELS_EXTENSION=0: installing without the native extension")
        return {}
    try:
        import torch
    except ImportError as error:
        reason = f"PyTorch cannot be imported while building ({error}); use --no-build-isolation"
    else:
        compiler = os.environ.get("CXX", "c++").split()[0]
        if shutil.which(compiler) is not None:
            return extension_arguments(torch)
        reason = f"no C++ compiler was found ({compiler!r} is not on PATH)"
    if wanted:
        raise SystemExit(f"VSS_KERNELS_EXTENSION=1, but {reason}")
    announce(
        f"{reason}. Installing WITHOUT the native extension: everything works, on the slower "
        "eager operators (and Triton on a GPU)"
    )
    return {}


def extension_arguments(torch: object) -> dict[str, object]:
    toolkit = toolkit_for(torch.version.cuda)
    if toolkit is not None:
        os.environ["CUDA_HOME"] = str(toolkit)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCH_LIST)
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    # Imported only now: it reads CUDA_HOME when it is imported.
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    sanitize = os.environ.get("VSS_KERNELS_SANITIZE", "")
    if sanitize not in ("", *SANITIZE_FLAGS):
        raise SystemExit(f"VSS_KERNELS_SANITIZE must be address or thread, got {sanitize!r}")
    machines = machines_for(sanitize, cuda=toolkit is not None)
    # What is the same on every machine is compiled once: the schemas and the gradients' formulas.
    once = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/autograd.cpp"))
    sources = ["csrc/library.cpp", *once, *compilations(machines)]
    flags = [
        "-O3",
        "-g0",
        "-std=c++20",
        "-fopenmp",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-pass-failed",  # of clang, about loops whose length it cannot see
    ]
    # Neither debug information, which Python's own flags may ask for, nor names nobody looks up.
    link_flags = ["-fopenmp"] if sanitize else ["-fopenmp", "-s"]
    if sanitize:
        flags += [*SANITIZE_FLAGS[sanitize], "-g1", "-O1", "-DVSS_SMALL_CODE"]
        link_flags += SANITIZE_FLAGS[sanitize]
    arch_list = os.environ.get("TORCH_CUDA_ARCH_LIST", "") if toolkit is not None else ""
    info = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if toolkit is not None else "",
        "cuda_arch_list": arch_list,
        "flags": " ".join(flags),
    }
    compile_arguments: dict[str, list[str]] = {"cxx": flags}
    if toolkit is not None:
        compile_arguments["nvcc"] = [
            *("-O3", "-std=c++20", "--expt-relaxed-constexpr"),
            *compression_flags(toolkit / "bin" / "nvcc"),
        ]
    extension = (CUDAExtension if toolkit is not None else CppExtension)(
        name="vss_kernels._C",
        sources=sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=[str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*")],
        extra_compile_args=compile_arguments,
        extra_link_args=link_flags,
        define_macros=[
            ("VSS_BUILD_FLAGS", f'"{info["flags"]}"'),
            ("VSS_BUILD_CUDA", f'"{info["cuda"]}"'),
            ("VSS_BUILD_ARCH_LIST", f'"{info["cuda_arch_list"]}"'),
            *((f"VSS_HAS_{machine.upper()}", None) for machine in machines),
        ],
    )

    class BuildWithRecord(BuildExtension):
        """Writes down how the extension was built, readable even when it fails to load."""

        def run(self) -> None:
            super().run()
            output = Path(self.get_ext_fullpath("vss_kernels._C"))
            record = output.with_name("_build.json")
            temporary = record.with_suffix(".tmp")
            temporary.write_text(json.dumps(info, indent=2) + "\n")
            temporary.replace(record)

    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildWithRecord}}


def machines_for(sanitize: str, *, cuda: bool) -> list[str]:
    """Returns the machines of csrc/machine/target.h to compile every operator for."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if sanitize == "thread":
        return ["race_check"]
    if sanitize == "address":  # one instruction set: sanitizers make each copy many times as large
        return ["avx2" if x86 else "baseline"]
    return ["baseline", *(["avx2", "avx512"] if x86 else []), *(["cuda"] if cuda else [])]


def compilations(machines: list[str]) -> list[str]:
    """Writes the source of each operator's compilation for each machine; returns their paths.

    Such a source names the machine and includes the operator's host.cpp. It is left alone where it
    is there already, so that it is not compiled again.
    """
    folder = Path("build", "machines")
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for host in sorted(ROOT.glob("csrc/*/host.cpp")):
        operator = host.parent.name
        for machine in machines:
            gpu = machine in ("cuda", "race_check")
            if gpu and operator in CPU_ONLY:
                continue
            path = folder / f"{operator}_{machine}.{'cu' if machine == 'cuda' else 'cpp'}"
            text = (
                f"#define VSS_{machine.upper()}\n"
                f'#include "{operator}/host.cpp"\n'
                '#include "machine/end.h"\n'
            )
            if not (ROOT / path).exists() or (ROOT / path).read_text() != text:
                (ROOT / path).write_text(text)
            paths.append(str(path))
    return paths


setup(license="Apache-2.0", **native_extension())
