"""The model of the GPU: reading machine code, loops and paths, issue, and the table of targets."""

from __future__ import annotations

import itertools
import shutil
import struct

import pytest

from benchmarks.gpu_model import __main__ as command
from benchmarks.gpu_model import table, tools
from benchmarks.gpu_model.cubin import choose_kernel, parse_resources, read_cubin, short_name
from benchmarks.gpu_model.flow import (
    find_loops,
    flow_graph,
    instructions_of,
    main_loop,
    whole_kernel,
    work_path,
)
from benchmarks.gpu_model.issue import model_slot, occupancy, simulate
from benchmarks.gpu_model.sass import Instruction, count, disassemble, parse_listing
from benchmarks.gpu_model.targets import TARGETS, Part, Target

# A kernel that sums exp2 of eight products, row after row, as nvcc 13.0 compiles it for sm_90. The
# numbers before a line are stall, write barrier, read barrier and wait mask; lines that end in a
# colon are labels.
LISTING = """
1 7 7 0 LDC R1, c[0x0][0x28]
1 0 7 0 S2R R5, SR_CTAID.X
5 7 7 1 IMAD R5, R5, UR4, R0
13 7 7 0 ISETP.GE.AND P0, PT, R5, UR5, PT
5 7 7 0 @P0 EXIT
5 7 7 0 @!P0 BRA `(.L_x_0)
1 7 7 0 MOV R7, RZ
.L_x_2:
1 0 7 0 LDC.64 R2, c[0x0][0x210]
12 7 7 1 IMAD.WIDE R2, R9, 0x4, R2
.L_x_1:
1 2 1 0 LDG.E R9, desc[UR6][R2.64]
4 7 7 0 IADD3 R4, R4, 0x1, RZ
8 7 7 4 FFMA.FTZ R6, R9, 2, R6
5 7 7 0 @P1 BRA `(.L_x_1)
9 7 7 0 FSETP.GT.FTZ.AND P1, PT, R6, 1.0, PT
5 7 7 0 @!P1 BRA `(.L_x_3)
4 7 7 0 FADD.FTZ R6, R6, 1
4 7 7 0 FSEL R3, R3, R6, P1
.L_x_3:
2 0 7 0 MUFU.EX2 R2, R3
1 7 7 1 FADD.FTZ R7, R2, R7
6 7 7 0 @!P0 BRA `(.L_x_2)
.L_x_0:
1 7 7 0 STG.E.64 desc[UR6][R2.64], R7
5 7 7 0 EXIT
.L_x_4:
0 7 7 0 BRA `(.L_x_4)
"""


def read_listing(text: str = LISTING):
    """Writes a listing as nvdisasm would, with the encoding that goes with it, and reads it."""
    lines, code = ["\t.target\tsm_90", '\t.section\t.text._Z4sums,"ax",@progbits'], b""
    for line in text.split("\n")[1:-1]:
        if line.endswith(":"):
            lines.append(line)
            continue
        stall, write, read, wait, instruction = line.split(" ", 4)
        lines.append('\t//## File "/somewhere/csrc/sums.cu", line 7')
        lines.append(f"        /*{len(code):04x}*/                   {instruction} ;")
        control = int(stall) | int(write) << 5 | int(read) << 8 | int(wait) << 11
        code += struct.pack("<QQ", 0, control << 41)
    return parse_listing("\n".join(lines), "_Z4sums", code)


def test_instructions_have_their_text_and_their_scheduling():
    function = read_listing()
    assert function.architecture == "sm_90"
    load = function.instructions[9]
    assert (load.address, load.opcode, load.kind, load.width) == (0x90, "LDG.E", "LDG", 32)
    assert (load.stall, load.write_barrier, load.read_barrier, load.wait) == (1, 2, 1, 0)
    assert load.source == ("csrc/sums.cu", 7)
    multiply = function.instructions[11]
    assert (multiply.kind, multiply.wait) == ("FFMA", 4)
    branch = function.instructions[12]
    assert (branch.predicate, branch.targets, branch.jumps) == ("@P1", (0x90,), True)
    assert function.instructions[-3].width == 64


def test_a_listing_that_does_not_fit_the_code_is_refused():
    with pytest.raises(tools.ToolError, match="0 instructions of _Z4sums, whose code has 16"):
        parse_listing("\t.target\tsm_90", "_Z4sums", bytes(16))


def test_loops_are_found_with_those_inside_them():
    function = read_listing()
    graph = flow_graph(function)
    outer, inner = find_loops(graph, function)
    assert inner.parent is outer
    assert outer.inner == outer.descendants() == [inner]
    assert [x.address for x in instructions_of(graph, function, inner)] == [0x90, 0xA0, 0xB0, 0xC0]
    assert main_loop(graph, function, "LDG").head == inner.head
    assert main_loop(graph, function, "LDG", up=1).head == outer.head
    with pytest.raises(ValueError, match="no loop has LDS instructions"):
        main_loop(graph, function, "LDS")
    with pytest.raises(ValueError, match="lies in fewer than 2"):
        main_loop(graph, function, "LDG", up=2)


def test_the_path_does_the_work_and_jumps_over_what_is_rare():
    function = read_listing()
    graph = flow_graph(function)
    outer, inner = find_loops(graph, function)
    assert len(work_path(graph, function, inner)) == 4
    path = work_path(graph, function, outer, trips=[8])
    # 2 before the inner loop, 8 passes of 4, then compare, jump, exp2, add, jump.
    assert len(path) == 2 + 8 * 4 + 5
    assert count(path, "LDG") == 8
    assert count(path, "LDG", "MUFU") == 9
    # The rare addition counts where it is the work that is asked for.
    with_rare = work_path(graph, function, outer, trips=[8], kinds=["other"])
    assert len(with_rare) == len(path) + 2
    kernel = work_path(graph, function, whole_kernel(graph, function), trips=[3, 8])
    assert len(kernel) == 7 + 3 * len(path) + 2
    with pytest.raises(ValueError, match="0 trip counts for 1 inner loops: 0x90"):
        work_path(graph, function, outer)


def slots(*opcodes: str):
    return [
        model_slot(Instruction(16 * place, "", opcode, "", stall=1))
        for place, opcode in enumerate(opcodes)
    ]


@pytest.mark.parametrize(
    ("opcode", "cycles", "limit"),
    [
        ("FFMA", 1.0, "issue"),  # two half-warp pipes
        ("IMAD", 2.0, "fma heavy"),  # only one of them multiplies integers
        ("MUFU.EX2", 8.0, "special functions"),
        ("LDS.128", 16.0, "shared memory and caches"),  # four words, one unit for four partitions
    ],
)
def test_independent_instructions_issue_at_the_rate_of_their_pipe(opcode, cycles, limit):
    result = simulate(slots(*[opcode] * 40), warps=8)
    assert result.cycles_per_pass / 40 == pytest.approx(cycles, rel=0.03)
    assert result.limit == limit


def test_one_warp_waits_for_what_it_needs():
    load = Instruction(0, "", "LDS", "", stall=1, write_barrier=0)
    use = Instruction(16, "", "FADD", "", stall=4, wait=1)
    path = [model_slot(load), model_slot(use)]
    alone, many = (simulate(path, warps) for warps in (1, 12))
    assert alone.limit == "latency"
    assert alone.cycles_per_pass == pytest.approx(28, abs=2)  # 23 of the load, 4 of the addition
    assert many.cycles_per_pass < alone.cycles_per_pass / 4


def test_occupancy_follows_registers_threads_and_shared_memory():
    assert occupancy(91, 160, 0) == occupancy(96, 160, 0)
    assert occupancy(91, 160, 0).blocks == 4
    assert occupancy(91, 160, 0).warps_per_subpartition == 5
    assert occupancy(32, 1024, 0).blocks == 2
    assert occupancy(32, 256, 100 * 1024).blocks == 2
    with pytest.raises(ValueError, match="300000 bytes of shared memory does not fit"):
        occupancy(32, 256, 300_000)


def test_names_and_resources_are_read():
    readable = (
        "void vss::cuda::kernel<(int)192, vss::cuda::(anonymous namespace)::LossTile<float> >"
        "(vss::cuda::(anonymous namespace)::LossTile<float>, long)"
    )
    assert short_name(readable) == "kernel<(int)192, LossTile<float>>"
    log = """ptxas info    : Function properties for _Z4sums
    0 bytes stack frame, 48 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 512 bytes smem"""
    resources = parse_resources(log)["_Z4sums"]
    assert (resources.registers, resources.spilled_bytes, resources.shared_bytes) == (80, 64, 512)


def evaluation(instructions=5.0, microseconds=100.0, spilled_bytes=0):
    return table.Evaluation(90, spilled_bytes, instructions, microseconds, "issue")


TARGET = Target(
    "loss, forward", "upsample_cross_entropy", "pixel", (Part("LossTile", "MUFU", threads=128),),
    instructions=6, microseconds=150,
)  # fmt: skip


def test_a_target_is_met_only_if_all_of_it_is():
    assert table.is_met(TARGET, [evaluation()])
    assert not table.is_met(TARGET, [evaluation(instructions=6.1)])
    assert not table.is_met(TARGET, [evaluation(microseconds=151)])
    assert not table.is_met(TARGET, [evaluation(), evaluation()]), "the times add up"
    assert not table.is_met(TARGET, [evaluation(microseconds=None)]), "an unknown time"
    assert not table.is_met(TARGET, [evaluation(spilled_bytes=8)])


@pytest.mark.parametrize(("microseconds", "status"), [(149.0, 0), (151.0, 1)])
def test_the_exit_status_says_whether_a_target_is_missed(
    microseconds, status, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(command, "TARGETS", [TARGET])
    monkeypatch.setattr(command, "CUBINS", tmp_path)
    monkeypatch.setattr(command, "compile_cubin", lambda *_: (tmp_path / "a.cubin", ""))
    monkeypatch.setattr(command, "evaluate", lambda *_: evaluation(microseconds=microseconds))
    assert command.run("loss", "HEAD") == status
    output = capsys.readouterr().out
    assert f"| {microseconds:.0f} " in output
    assert f"{status} of 1 targets are missed." in output
    assert "A model, not a measurement" in output


def test_only_what_changed_is_modelled(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CUBINS", tmp_path)
    changed = tools.ROOT / "csrc" / "upsample_argmax" / "kernel.h"
    monkeypatch.setattr(command, "changed_files", lambda base: {changed})
    chosen = {target.operator for target in command.select("changed", "HEAD")}
    assert chosen == {"upsample_argmax"}
    monkeypatch.setattr(command, "changed_files", lambda base: {tools.ROOT / "README.md"})
    assert command.select("changed", "HEAD") == []
    with pytest.raises(ValueError, match=r"no target has 'speed' in its name; there are:\n  upsa"):
        command.select("speed", "HEAD")


def test_targets_have_sources_and_names_of_their_own(tmp_path):
    for target in TARGETS:
        files = tools.included(tools.cuda_source(target.operator, tmp_path))
        assert tools.ROOT / "csrc" / target.operator / "host.cpp" in files
    for one, other in itertools.combinations(TARGETS, 2):
        assert one.name != other.name


def test_an_unknown_kernel_is_named(tmp_path):
    path = tmp_path / "some.cubin"
    path.write_bytes(b"\x7fELF\x02\x01" + bytes(100))
    with pytest.raises(ValueError, match=r"some.cubin is not a cubin"):
        read_cubin(path)
    with pytest.raises(ValueError, match="no kernel matches 'LossTile'"):
        choose_kernel([], "LossTile")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_kernel_is_compiled_and_read(tmp_path):
    source = tmp_path / "scale.cu"
    source.write_text(
        "__global__ void scale(float* x, int count) {\n"
        "#pragma unroll 1\n"
        "  for (int k = threadIdx.x; k < count; k += 256) x[k] = x[k] * 2.f + 1.f;\n"
        "}\n"
    )
    cubin, log = tools.compile_cubin(source, "sm_90", tmp_path)
    written = cubin.stat().st_mtime_ns
    assert tools.compile_cubin(source, "sm_90", tmp_path)[0].stat().st_mtime_ns == written
    kernel = choose_kernel(read_cubin(cubin), "scale")
    assert parse_resources(log)[kernel.name].spilled_bytes == 0
    function = disassemble(cubin, kernel)
    graph = flow_graph(function)
    path = work_path(graph, function, main_loop(graph, function, "FFMA"))
    assert [count(path, kind) for kind in ("LDG", "FFMA", "STG")] == [1, 1, 1]
    result = command.evaluate(Part("scale", "FFMA", 256, units_per_pass=1, units=1e6), cubin, log)
    assert result.instructions == len(path)
    assert result.microseconds is not None
    assert result.microseconds > 0

    def microseconds(blocks: int) -> float:
        whole = Part("scale", "FFMA", 256, blocks=blocks, up=None, trips=(1,))
        return command.evaluate(whole, cubin, log).microseconds or 0.0

    assert microseconds(1) == microseconds(132), "the busiest multiprocessor has one block"
    assert microseconds(133) > microseconds(132), "and now two"
