"""Instructions of a kernel: text from nvdisasm, scheduling from the encoding."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_model.cubin import Kernel
from benchmarks.gpu_model.tools import ToolError, find_tool, run_tool

INSTRUCTION_BYTES = 16  # every instruction, sm_70 and later
JUMPS = {"BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU"}
MEMORY = {
    "LDG": "LDG", "LD": "LDG", "STG": "STG", "ST": "STG", "LDS": "LDS", "STS": "STS", "LDL": "LDL",
    "STL": "STL", "LDSM": "LDS", "STSM": "STS", "LDGSTS": "LDG",
}  # fmt: skip
FP32 = {"FADD", "FMUL", "FADD32I", "FMUL32I", "FSWZADD"}
FFMA = {"FFMA", "FFMA2", "FFMA32I"}
FP16 = {
    "HFMA2", "HADD2", "HMUL2", "HSETP2", "HSET2", "HMNMX2", "HFMA2_32I", "HADD2_32I", "HMUL2_32I",
}  # fmt: skip
FP64 = {"DFMA", "DADD", "DMUL", "DSETP"}
CONVERSIONS = {"I2F", "F2I", "F2F", "FRND", "I2I", "I2FP", "F2FP", "F2IP", "I2IP"}
CONTROL = {
    "BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU", "BSSY", "BSYNC", "BREAK", "BMOV", "EXIT", "RET",
    "CALL", "NOP", "YIELD", "WARPSYNC", "NANOSLEEP", "KILL", "PREEXIT", "ACQBULK", "ELECT",
}  # fmt: skip
BARRIERS = {"BAR", "DEPBAR", "MEMBAR", "ERRBAR", "CCTL", "SYNCS", "FENCE", "LDGDEPBAR"}
ATOMICS = {"ATOM", "ATOMG", "ATOMS", "RED", "REDG"}


@dataclass
class Instruction:
    """An instruction.

    Attributes:
        address: In bytes from the kernel's start.
        predicate: Empty where it always executes.
        opcode: With its modifiers.
        operands: As nvdisasm writes them.
        targets: Addresses that it may jump to.
        callee: The routine that it calls, or empty.
        source: File and line, or None.
        stall: Cycles before the warp's next instruction.
        write_barrier: Scoreboard that is set until the result is there; 7 for none.
        read_barrier: Scoreboard that is set until the operands were read; 7 for none.
        wait: Bit mask of the scoreboards that it waits for.
    """

    address: int
    predicate: str
    opcode: str
    operands: str
    targets: tuple[int, ...] = ()
    callee: str = ""
    source: tuple[str, int] | None = None
    stall: int = 0
    write_barrier: int = 7
    read_barrier: int = 7
    wait: int = 0

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def jumps(self) -> bool:
        """Whether it goes to its targets and does not come back."""
        return self.base in JUMPS or (self.base == "CALL" and self.callee.startswith(".L"))

    @property
    def conditional(self) -> bool:
        """Whether it may do nothing; BRA also takes a predicate among its operands."""
        return bool(self.predicate) or (self.base == "BRA" and "," in self.operands)

    @property
    def width(self) -> int:
        """Bits that a memory access moves for each lane."""
        sizes = {"64": 64, "128": 128, "U8": 8, "S8": 8, "U16": 16, "S16": 16}
        parts = self.opcode.split(".")[1:]
        return next((sizes[part] for part in parts if part in sizes), 32)

    @property
    def kind(self) -> str:
        """What kind of work it is, such as FFMA, LDG or MUFU; "other" for most."""
        if self.base in MEMORY:
            return MEMORY[self.base]
        if self.base in FFMA:
            return "FFMA"
        return self.base if self.base in ("MUFU", "SHFL") else "other"


@dataclass
class Function:
    """A kernel's instructions.

    Attributes:
        architecture: Such as ``sm_90``.
        instructions: In address order.
        routines: Addresses of library routines in the same section.
    """

    architecture: str
    instructions: list[Instruction]
    routines: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.index = {x.address: place for place, x in enumerate(self.instructions)}


def disassemble(cubin: Path, kernel: Kernel) -> Function:
    """Lists a kernel's instructions.

    Raises:
        ToolError: nvdisasm is missing or failed, or listed something else than the kernel's code.
    """
    command = [find_tool("nvdisasm"), "-c", "-g", "-fun", str(kernel.symbol), str(cubin)]
    return parse_listing(run_tool(command), kernel.name, kernel.code)


def parse_listing(listing: str, name: str, code: bytes) -> Function:
    """Reads nvdisasm's listing of a kernel.

    Args:
        listing: What it printed.
        name: The kernel's mangled name.
        code: Its machine code, which holds the scheduling.

    Raises:
        ToolError: The listing and the code do not fit.
    """
    architecture = re.search(r"\.target\s+(sm_\w+)", listing)
    labels: dict[str, int] = {}
    waiting: list[str] = []
    lines: list[tuple[int, str, tuple[str, int] | None]] = []
    inside, source = False, None
    for line in listing.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^\s,]+)", line):
            inside = section.group(1).strip('"') == name
        elif not inside:
            continue
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*$", line):
            labels.update((label, int(found.group(1), 16)) for label in waiting)
            waiting = []
            lines.append((int(found.group(1), 16), found.group(2), source))
        elif at := re.match(r'\s*//## File "([^"]+)", line (\d+)', line):
            source = ("/".join(Path(at.group(1)).parts[-2:]), int(at.group(2)))
        elif label := re.match(r"(\S+):\s*$", line):
            waiting.append(label.group(1))
    if architecture is None or len(lines) * INSTRUCTION_BYTES != len(code) or not lines:
        raise ToolError(
            f"nvdisasm listed {len(lines)} instructions of {name}, whose code has {len(code)} bytes"
        )
    instructions = [_instruction(address, text, where, labels) for address, text, where in lines]
    for instruction in instructions:
        control = struct.unpack_from("<Q", code, instruction.address + 8)[0] >> 41
        instruction.stall = control & 15
        instruction.write_barrier = control >> 5 & 7
        instruction.read_barrier = control >> 8 & 7
        instruction.wait = control >> 11 & 63
    routines = tuple(sorted(labels[label] for label in labels if label.startswith("$")))
    return Function(architecture.group(1), instructions, routines)


def _instruction(
    address: int, text: str, source: tuple[str, int] | None, labels: dict[str, int]
) -> Instruction:
    predicate = ""
    if text.startswith("@"):
        predicate, text = text.split(None, 1)
    opcode, _, operands = text.partition(" ")
    opcode, operands = opcode.rstrip(";"), operands.strip()
    targets, callee = [], ""
    if opcode.split(".")[0] in JUMPS | {"BSSY", "CALL"}:
        names = re.findall(r"\.L_x_\d+|\.L_\d+", operands)
        names += re.findall(r"`\((\$[^)]+)\)", operands)
        targets = [labels[name] for name in names if name in labels]
        if opcode.startswith("CALL"):
            called = re.search(r"`\(([^)]+)\)", operands)
            callee = called.group(1) if called else operands
    return Instruction(address, predicate, opcode, operands, tuple(targets), callee, source)


def count(instructions: Iterable[Instruction], *kinds: str) -> int:
    """Returns how many instructions are of some kinds, see :attr:`Instruction.kind`."""
    return sum(x.kind in kinds for x in instructions)
