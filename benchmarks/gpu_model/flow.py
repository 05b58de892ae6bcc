"""Loops of a kernel, and the path through one that does its work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu_model.sass import INSTRUCTION_BYTES, Function, Instruction, count

# What kernels are there for; the rest decides where and how often.
WORK = ("FFMA", "MUFU", "LDG", "STG", "LDS", "STS", "SHFL")


@dataclass(frozen=True)
class Graph:
    """Basic blocks.

    Attributes:
        blocks: First and last instruction of each, by place.
        successors: The blocks that may follow each.
        entries: Where control comes in: the kernel's start, and library routines.
    """

    blocks: list[tuple[int, int]]
    successors: list[list[int]]
    entries: list[int]


@dataclass
class Loop:
    """A natural loop: a jump back to a block that every path to the jump passes through.

    Attributes:
        head: The block that it begins with.
        blocks: Its blocks, those of inner loops included.
        inner: The loops directly inside it, in address order.
        parent: The loop directly around it.
    """

    head: int
    blocks: set[int]
    inner: list[Loop]
    parent: Loop | None = None

    def descendants(self) -> list[Loop]:
        """Returns all loops inside it, each followed by those inside itself."""
        return [loop for child in self.inner for loop in (child, *child.descendants())]


def flow_graph(function: Function) -> Graph:
    """Returns a kernel's basic blocks and how control flows between them."""
    code, index = function.instructions, function.index
    leaders = {0} | {index[at] for at in function.routines if at in index}
    convergence: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, x in enumerate(code):
        leaders.update(index[target] for target in x.targets if target in index)
        if x.jumps or x.base in ("EXIT", "RET", "BSYNC", "KILL"):
            leaders.add(place + 1)
        if x.base == "BSSY" and x.targets:
            convergence[x.operands.split(",")[0]].append((place, x.targets[0]))
    starts = sorted(place for place in leaders if place < len(code))
    ends = [*(start - 1 for start in starts[1:]), len(code) - 1]
    blocks = list(zip(starts, ends, strict=True))
    block_at = {first: number for number, (first, _) in enumerate(blocks)}
    successors = []
    for number, (_, last) in enumerate(blocks):
        x = code[last]
        after = {block_at[index[at]] for at in x.targets if at in index} if x.jumps else set()
        falls_through = not x.jumps and x.base not in ("RET", "EXIT", "KILL")
        if x.base == "BSYNC":
            # Control goes on where the matching BSSY said, mostly the next instruction.
            register = x.operands.strip()
            nearest = [target for place, target in convergence[register] if place < last]
            if nearest and x.address + INSTRUCTION_BYTES not in nearest:
                after.add(block_at[index[nearest[-1]]])
                falls_through = False
        if (falls_through or x.conditional) and number + 1 < len(blocks):
            after.add(number + 1)
        successors.append(sorted(after))
    entries = [0, *sorted(block_at[index[at]] for at in function.routines if at in index)]
    return Graph(blocks, successors, entries)


def _dominators(graph: Graph) -> tuple[list[int | None], list[int]]:
    """Returns the nearest block that all paths to each block pass through, and what is reachable.

    One more block, the last, stands before all entries. Iterates in reverse postorder (Cooper,
    Harvey and Kennedy, "A simple, fast dominance algorithm").
    """
    root = len(graph.successors)
    edges = [*graph.successors, graph.entries]
    order: list[int] = []
    seen, stack = {root}, [(root, iter(edges[root]))]
    while stack:
        node, rest = stack[-1]
        for after in rest:
            if after not in seen:
                seen.add(after)
                stack.append((after, iter(edges[after])))
                break
        else:
            order.append(node)
            stack.pop()
    rank = {node: place for place, node in enumerate(order)}
    before = defaultdict(list)
    for node in order:
        for after in edges[node]:
            before[after].append(node)
    parent: list[int | None] = [None] * (root + 1)
    parent[root] = root

    def meet(left: int, right: int) -> int:
        while left != right:
            while rank[left] < rank[right]:
                left = parent[left]  # type: ignore[assignment]
            while rank[right] < rank[left]:
                right = parent[right]  # type: ignore[assignment]
        return left

    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            known = [other for other in before[node] if parent[other] is not None]
            best = known[0]
            for other in known[1:]:
                best = meet(best, other)
            if parent[node] != best:
                parent[node], changed = best, True
    return parent, [node for node in order if node != root]


def find_loops(graph: Graph, function: Function) -> list[Loop]:
    """Returns a kernel's loops in address order, an outer one before those inside it."""
    parent, reachable = _dominators(graph)
    root = len(graph.successors)
    before: dict[int, list[int]] = defaultdict(list)
    for node in reachable:
        for after in graph.successors[node]:
            before[after].append(node)

    def dominates(upper: int, node: int) -> bool:
        while node not in (upper, root):
            node = parent[node]  # type: ignore[assignment]
        return node == upper

    found: dict[int, Loop] = {}
    for node in reachable:
        for head in graph.successors[node]:
            first, last = graph.blocks[node]
            endless = head == node and first == last  # the branch that pads every kernel
            if endless or not dominates(head, node):
                continue
            loop = found.setdefault(head, Loop(head, {head}, []))
            waiting = [node]
            while waiting:
                block = waiting.pop()
                if block not in loop.blocks:
                    loop.blocks.add(block)
                    waiting += before[block]
    loops = sorted(found.values(), key=lambda loop: (loop.head, -len(loop.blocks)))
    for loop in loops:
        around = [other for other in loops if loop.blocks < other.blocks]
        if around:
            loop.parent = min(around, key=lambda other: len(other.blocks))
            loop.parent.inner.append(loop)
    return loops


def whole_kernel(graph: Graph, function: Function) -> Loop:
    """Returns a kernel as if it were a loop that runs once, for :func:`work_path`."""
    blocks = {0}
    waiting = [0]
    while waiting:
        new = [after for after in graph.successors[waiting.pop()] if after not in blocks]
        blocks.update(new)
        waiting += new
    outermost = [loop for loop in find_loops(graph, function) if loop.parent is None]
    return Loop(0, blocks, [loop for loop in outermost if loop.head in blocks])


def instructions_of(graph: Graph, function: Function, loop: Loop) -> list[Instruction]:
    """Returns all instructions of a loop, inner loops included, in address order."""
    return [
        x
        for block in sorted(loop.blocks)
        for x in function.instructions[graph.blocks[block][0] : graph.blocks[block][1] + 1]
    ]


def main_loop(graph: Graph, function: Function, kind: str, up: int = 0) -> Loop:
    """Returns the innermost loop with the most instructions of a kind, or one around it.

    Args:
        graph: Result of :func:`flow_graph`.
        function: The kernel.
        kind: See :attr:`Instruction.kind`.
        up: How many loops further out.

    Raises:
        ValueError: There is no such loop.
    """
    innermost = [loop for loop in find_loops(graph, function) if not loop.inner]
    counts = [count(instructions_of(graph, function, loop), kind) for loop in innermost]
    if not any(counts):
        raise ValueError(f"no loop has {kind} instructions")
    loop: Loop | None = innermost[counts.index(max(counts))]
    for _ in range(up):
        loop = None if loop is None else loop.parent
    if loop is None:
        raise ValueError(f"the loop with the most {kind} instructions lies in fewer than {up}")
    return loop


def work_path(
    graph: Graph,
    function: Function,
    loop: Loop,
    trips: Sequence[int] = (),
    kinds: Sequence[str] = WORK,
) -> list[Instruction]:
    """Returns the instructions of one pass through a loop.

    Of all paths it is the one with the most instructions of some kinds, and of those the shortest:
    what rare cases need is left out unless it does such work.

    Args:
        graph: Result of :func:`flow_graph`.
        function: The kernel.
        loop: The loop.
        trips: How often each loop inside runs in a pass of the one around it, in the order of
            :meth:`Loop.descendants`.
        kinds: The kinds, see :attr:`Instruction.kind`.

    Raises:
        ValueError: There are not as many ``trips`` as loops.
    """
    inside = loop.descendants()
    if len(inside) != len(trips):
        starts = [function.instructions[graph.blocks[inner.head][0]] for inner in inside]
        listed = ", ".join(f"{x.address:#x} {x.source or ''}".strip() for x in starts)
        raise ValueError(f"{len(trips)} trip counts for {len(inside)} inner loops: {listed}")
    inner_paths = {}
    place = 0
    for child in loop.inner:
        below = len(child.descendants())
        path = work_path(graph, function, child, trips[place + 1 : place + 1 + below], kinds)
        inner_paths[child.head] = (child, path * trips[place])
        place += 1 + below
    return _best_path(graph, function, loop, kinds, inner_paths)


def _best_path(
    graph: Graph,
    function: Function,
    loop: Loop,
    kinds: Sequence[str],
    inner_paths: dict[int, tuple[Loop, list[Instruction]]],
) -> list[Instruction]:
    """Finds the path from a loop's head back to it, each inner loop taken as one step."""
    best: dict[int, tuple[tuple[int, int], list[int]] | None] = {}

    def step(block: int) -> tuple[list[Instruction], list[int]]:
        if block in inner_paths and block != loop.head:
            child, path = inner_paths[block]
            leaving = {
                after
                for member in child.blocks
                for after in graph.successors[member]
                if after not in child.blocks
            }
            return path, sorted(leaving)
        first, last = graph.blocks[block]
        return function.instructions[first : last + 1], graph.successors[block]

    def search(start: int) -> None:
        waiting = [start]
        while waiting:
            block = waiting[-1]
            instructions, successors = step(block)
            onward = [after for after in successors if after in loop.blocks and after != loop.head]
            unknown = [after for after in onward if after not in best]
            if unknown:
                waiting += unknown
                continue
            waiting.pop()
            work = count(instructions, *kinds)
            length = len(instructions)
            options: list[tuple[tuple[int, int], list[int]]] = []
            if loop.head in successors or not successors:
                options.append(((work, -length), [block]))
            for after in onward:
                known = best[after]
                if known is not None:
                    (more, shorter), path = known
                    options.append(((work + more, shorter - length), [block, *path]))
            best[block] = max(options, key=lambda option: option[0], default=None)

    search(loop.head)
    found = best[loop.head]
    assert found is not None, "there is a way back to a loop's head, and out of a kernel"
    return [x for block in found[1] for x in step(block)[0]]
