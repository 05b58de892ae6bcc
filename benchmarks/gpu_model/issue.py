"""An issue model of a multiprocessor: cycles of a path that many warps run over and over."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu_model.sass import (
    ATOMICS,
    BARRIERS,
    CONTROL,
    CONVERSIONS,
    FFMA,
    FP16,
    FP32,
    FP64,
    MEMORY,
    Instruction,
)

# An H100 or H200.
MULTIPROCESSORS = 132
CLOCK_GHZ = 1.755
SUBPARTITIONS = 4
REGISTERS, SHARED_BYTES, THREADS, BLOCKS = 65536, 228 * 1024, 2048, 32  # of a multiprocessor

# Cycles from issue to the result, for what a scoreboard guards; other latencies are in the stalls.
LATENCY = {
    "LDS": 23, "SHFL": 23, "MUFU": 20, "CONVERT": 20, "CONVERT64": 22, "CONSTANT": 30,
    "UNIFORM": 10, "BARRIER": 10, "FP64": 20, "OTHER": 20,
}  # fmt: skip
L1_LATENCY, L2_LATENCY = 35, 270
QUEUE = 12  # cycles of memory instructions that may wait for the load/store unit
BIT_COUNTS = {"POPC", "FLO", "BREV", "UPOPC", "UFLO", "UBREV"}


@dataclass(frozen=True)
class Slot:
    """An instruction as the model sees it.

    Attributes:
        kind: A key of the latencies.
        pipes: Pipes and the cycles that each is busy; "fma" is whichever half is free first.
        shared: Cycles of the load/store unit that the sub-partitions share.
        stall: Cycles before the warp's next instruction.
        write_barrier: See :class:`Instruction`.
        read_barrier: See :class:`Instruction`.
        waits: Scoreboards that it waits for.
    """

    kind: str
    pipes: tuple[tuple[str, int], ...]
    shared: float
    stall: int
    write_barrier: int
    read_barrier: int
    waits: tuple[int, ...]


@dataclass(frozen=True)
class Occupancy:
    """How many blocks and warps a multiprocessor holds."""

    blocks: int
    warps_per_subpartition: int


def occupancy(registers: int, threads: int, shared_bytes: int) -> Occupancy:
    """Returns what fits on a multiprocessor.

    Args:
        registers: Of a thread.
        threads: Of a block.
        shared_bytes: Of a block.

    Raises:
        ValueError: Not even one block fits.
    """
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        BLOCKS,
        THREADS // (warps * 32),
        REGISTERS // (of_a_warp * warps),
        SHARED_BYTES // (shared_bytes + 1024),
    )
    if blocks == 0:
        raise ValueError(
            f"a block of {threads} threads, {registers} registers each, and {shared_bytes} bytes "
            "of shared memory does not fit on a multiprocessor"
        )
    return Occupancy(blocks, max(1, round(blocks * warps / SUBPARTITIONS)))


def model_slot(x: Instruction, conflict: float = 1.0) -> Slot:
    """Returns an instruction as the model sees it.

    Args:
        x: The instruction.
        conflict: Passes that a shared-memory access takes, 1 without bank conflicts.
    """
    base = x.base
    kind, shared = "OTHER", 0.0
    pipes: tuple[tuple[str, int], ...] = (("alu", 2),)
    if base in MEMORY:
        kind = {"LDL": "LDG", "STL": "STG"}.get(MEMORY[base], MEMORY[base])
        shared = max(1.0, x.width / 32) * (conflict if kind in ("LDS", "STS") else 1.0)
        pipes = (("memory", 2),)
    elif base == "SHFL" or base in ATOMICS:
        kind, pipes, shared = ("SHFL" if base == "SHFL" else "LDG"), (("memory", 2),), 1.0
    elif base in FFMA or base in FP32:
        pipes = (("fma", 2),)
    elif base in ("IMAD", "IDP", "IMUL"):
        pipes = (("fma heavy", 2),)
    elif base in FP16:
        pipes = (("fma heavy", 1), ("fma lite", 1))
    elif base in FP64:
        kind, pipes = "FP64", (("fp64", 2),)
    elif base == "MUFU" or base in BIT_COUNTS:
        kind, pipes = "MUFU", (("special functions", 8),)
    elif base in CONVERSIONS:
        if base not in ("I2FP", "F2FP", "I2IP", "F2IP"):  # those four are plain ALU instructions
            kind = "CONVERT64" if "64" in x.opcode else "CONVERT"
            pipes = (("special functions", 8),)
    elif base in ("LDC", "LDCU", "ULDC"):
        kind, pipes = "CONSTANT", (("uniform", 2),)
    elif base in BARRIERS:
        kind, pipes = "BARRIER", ()
    elif base in CONTROL:
        kind, pipes = "CONTROL", ()
    elif base in ("S2R", "S2UR", "R2UR") or base.startswith("U"):
        kind, pipes = "UNIFORM", (("uniform", 2),)
    waits = tuple(bit for bit in range(6) if x.wait >> bit & 1)
    return Slot(kind, pipes, shared, max(1, x.stall), x.write_barrier, x.read_barrier, waits)


@dataclass(frozen=True)
class Simulation:
    """What came out.

    Attributes:
        cycles_per_pass: Cycles of a sub-partition for one warp's pass.
        issue: Fraction of the cycles in which an instruction is issued.
        limit: The busiest pipe, or "latency" where none is busy three quarters of the time.
    """

    cycles_per_pass: float
    issue: float
    limit: str


def simulate(
    slots: Sequence[Slot], warps: int, *, l1_hit: float = 0.8, seed: int = 0
) -> Simulation:
    """Issues a path over and over in some warps of each of the four sub-partitions.

    Each cycle a sub-partition issues at most one instruction: from the warp it issued from last if
    that one is ready, else from the next ready one. Ready means that the last instruction's stall
    is over, the scoreboards waited for are clear and the pipe is free. Counting starts after the
    first fifth of the instructions.

    Args:
        slots: The path.
        warps: Warps of a sub-partition.
        l1_hit: Fraction of the global loads that hit the L1 cache.
        seed: Of where the warps start and of which loads hit.
    """
    generator = random.Random(seed)
    passes = max(3, -(-3000 // len(slots)))
    total = passes * len(slots) * warps * SUBPARTITIONS
    warm_up = total // 5
    parts = [
        _SubPartition(slots, warps, generator, min(2000, 2 * len(slots)), l1_hit)
        for _ in range(SUBPARTITIONS)
    ]
    unit = _LoadStoreUnit()
    cycle = issued = start_cycle = 0
    busy: dict[str, float] = defaultdict(float)
    while issued < total:
        progressed, soonest = False, 1 << 60
        for part in parts:
            ready_at = part.issue(cycle, unit, busy if issued >= warm_up else None)
            if ready_at is not None:
                soonest = min(soonest, ready_at)
                continue
            issued += 1
            progressed = True
            if issued == warm_up:
                start_cycle = cycle
        cycle = cycle + 1 if progressed else max(cycle + 1, soonest)
    cycles, instructions = max(1, cycle - start_cycle), issued - warm_up
    use = {pipe: amount / cycles / SUBPARTITIONS for pipe, amount in busy.items()}
    if "shared memory and caches" in use:  # one unit for all four
        use["shared memory and caches"] *= SUBPARTITIONS
    use["issue"] = instructions / cycles / SUBPARTITIONS
    limit = max(use, key=lambda name: (round(use[name], 2), name == "issue"))
    return Simulation(
        len(slots) * cycles * SUBPARTITIONS / instructions,
        use["issue"],
        limit if use[limit] >= 0.75 else "latency",
    )


class _LoadStoreUnit:
    """When the unit that the sub-partitions share is free."""

    def __init__(self) -> None:
        self.free = 0.0


class _SubPartition:
    """The warps of a sub-partition, and when its pipes are free."""

    def __init__(
        self,
        slots: Sequence[Slot],
        warps: int,
        generator: random.Random,
        stagger: int,
        l1_hit: float,
    ) -> None:
        self.slots, self.warps, self.generator, self.l1_hit = slots, warps, generator, l1_hit
        self.place = [0] * warps
        self.ready = [generator.randint(0, stagger) for _ in range(warps)]
        self.boards = [[0] * 6 for _ in range(warps)]
        self.pipes: dict[str, int] = defaultdict(int)
        self.last = 0

    def issue(self, cycle: int, unit: _LoadStoreUnit, busy: dict[str, float] | None) -> int | None:
        """Issues an instruction if one is ready; otherwise returns when one may be."""
        soonest = 1 << 60
        for offset in range(self.warps):
            warp = (self.last + offset) % self.warps
            slot = self.slots[self.place[warp]]
            at = max([self.ready[warp], *(self.boards[warp][bit] for bit in slot.waits)])
            pipes = [(self._free_half() if name == "fma" else name, n) for name, n in slot.pipes]
            at = max([at, *(self.pipes[name] for name, _ in pipes)])
            if slot.shared:
                at = max(at, int(unit.free) - QUEUE)
            if at <= cycle:
                self._start(warp, slot, pipes, cycle, unit, busy)
                return None
            soonest = min(soonest, at)
        return soonest

    def _free_half(self) -> str:
        return min(("fma heavy", "fma lite"), key=lambda name: self.pipes[name])

    def _start(
        self,
        warp: int,
        slot: Slot,
        pipes: list[tuple[str, int]],
        cycle: int,
        unit: _LoadStoreUnit,
        busy: dict[str, float] | None,
    ) -> None:
        for name, cycles in pipes:
            self.pipes[name] = cycle + cycles
            if busy is not None:
                busy[name] += cycles
        latency = LATENCY.get(slot.kind, 0)
        if slot.kind == "LDG":
            latency = L1_LATENCY if self.generator.random() < self.l1_hit else L2_LATENCY
        done = cycle + latency
        if slot.shared:
            unit.free = max(unit.free, cycle) + slot.shared
            done = int(unit.free) + latency
            if busy is not None:
                busy["shared memory and caches"] += slot.shared
        board = self.boards[warp]
        if slot.write_barrier < 6:
            board[slot.write_barrier] = max(board[slot.write_barrier], done)
        if slot.read_barrier < 6:
            read = cycle + (12 if slot.shared else 6)
            board[slot.read_barrier] = max(board[slot.read_barrier], read)
        self.ready[warp] = cycle + slot.stall
        self.place[warp] = (self.place[warp] + 1) % len(self.slots)
        self.last = warp
