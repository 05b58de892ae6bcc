"""Kernels of a cubin: an ELF file with a section of machine code for each."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = 2  # type of a symbol
_CUDA = 190  # machine of an ELF file


@dataclass(frozen=True)
class Kernel:
    """A kernel.

    Attributes:
        name: As the linker knows it.
        readable: Its C++ name.
        symbol: Its place in the symbol table, by which nvdisasm takes it.
        code: Machine code.
    """

    name: str
    readable: str
    symbol: int
    code: bytes

    @property
    def short(self) -> str:
        """The C++ name without namespaces, arguments and return type."""
        return short_name(self.readable)


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel.

    Attributes:
        registers: Of a thread.
        spilled_bytes: Stored to and loaded from local memory for want of registers.
        shared_bytes: Shared memory that is fixed when compiled.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


def demangle(names: Sequence[str]) -> dict[str, str]:
    """Returns the C++ form of each name; the name itself where no demangler is found."""
    program = shutil.which("cu++filt") or shutil.which("c++filt")
    if program is None or not names:
        return {name: name for name in names}
    lines = subprocess.run(
        [program], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return dict(zip(names, lines, strict=True))


def short_name(readable: str) -> str:
    """Returns a C++ name without return type, arguments and namespaces."""
    text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", readable)
    depth, end = 0, len(text)
    for index in range(len(text) - 1, -1, -1):  # the last outer parenthesis opens the arguments
        depth += {")": 1, "(": -1}.get(text[index], 0)
        if text[index] == "(" and depth == 0:
            end = index
            break
    text = re.sub(r">\s+(?=>)", ">", text[:end])
    return re.sub(r"\b[A-Za-z_]\w*::", "", text).replace("void ", "")


def _text_at(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode(errors="replace")


def read_cubin(path: Path) -> list[Kernel]:
    """Reads the kernels of a cubin.

    Raises:
        ValueError: The file is not a cubin.
    """
    data = path.read_bytes()
    is_elf = data[:6] == b"\x7fELF\x02\x01" and len(data) >= 64
    if not is_elf or struct.unpack_from("<H", data, 18)[0] != _CUDA:
        raise ValueError(f"{path} is not a cubin")
    table = struct.unpack_from("<Q", data, 40)[0]
    size, count, names_at = struct.unpack_from("<HHH", data, 58)
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", data, table + index * size) for index in range(count)
    ]

    def body(header: tuple[int, ...]) -> bytes:
        return data[header[4] : header[4] + header[5]]

    section_names = body(headers[names_at])
    sections = {_text_at(section_names, header[0]): header for header in headers}
    symbol_table = sections[".symtab"]
    entries, strings = body(symbol_table), body(headers[symbol_table[6]])
    symbols: dict[str, int] = {}
    for index in range(len(entries) // 24):
        name_at, kind, *_ = struct.unpack_from("<IBBHQQ", entries, index * 24)
        if kind & 15 == _FUNCTION:
            symbols.setdefault(_text_at(strings, name_at), index)
    prefix = ".text."
    names = [name.removeprefix(prefix) for name in sections if name.startswith(prefix)]
    readable = demangle(names)
    return [
        Kernel(name, readable[name], symbols[name], body(sections[prefix + name]))
        for name in names
        if name in symbols
    ]


def choose_kernel(kernels: Sequence[Kernel], text: str) -> Kernel:
    """Returns the kernel whose short name contains a text.

    Raises:
        ValueError: None does, or several do; the message lists them.
    """
    found = [kernel for kernel in kernels if text in kernel.short]
    if len(found) != 1:
        listed = "\n".join(f"  {kernel.short}" for kernel in found or kernels)
        problem = f"{len(found)} kernels match" if found else "no kernel matches"
        raise ValueError(f"{problem} {text!r}; there are:\n{listed}")
    return found[0]


def parse_resources(log: str) -> dict[str, Resources]:
    """Reads what ``nvcc -Xptxas -v`` says of each kernel, by its mangled name."""
    resources: dict[str, Resources] = {}
    name, spilled = "", 0
    for line in log.splitlines():
        if properties := re.search(r"Function properties for (\S+)", line):
            name = properties.group(1)
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(found.group(1)) + int(found.group(2))
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            resources[name] = Resources(
                int(used.group(1)), spilled, int(shared.group(1)) if shared else 0
            )
    return resources
