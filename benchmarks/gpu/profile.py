"""What limits an operator's kernels: counters of Nsight Compute at the published sizes.

``python -m benchmarks.gpu.profile OPERATOR`` runs itself again under ``ncu`` and prints a line for
each kernel. Where ``ncu`` is missing or may not read counters, PyTorch's profiler tells how long
the kernels took, and nothing else.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import (
    bench_add_layer_norm,
    bench_aggregate_affinity,
    bench_attend_selected,
    bench_depthwise_gelu,
    bench_focal_attention,
    bench_focal_pool,
    bench_fuse_pyramid,
    bench_masked_affinity,
    bench_select_tokens,
    bench_upsample_argmax,
    bench_upsample_cross_entropy,
)
from benchmarks.harness import DEVICE, Measure, implementation_of

# Counter: what the printed line calls it.
COUNTERS = {
    "gpu__time_duration.sum": "time",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue active",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active",
    "smsp__inst_executed.sum": "warp instructions",
    "dram__bytes_read.sum": "DRAM read",
    "dram__bytes_write.sum": "DRAM written",
    "lts__t_sectors.sum": "L2 sectors",
    "launch__registers_per_thread": "registers",
    "launch__occupancy_limit_shared_mem": "blocks by shared memory",
    "launch__occupancy_limit_registers": "blocks by registers",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank conflicts",
}
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    "long_scoreboard", "short_scoreboard", "barrier", "wait", "not_selected", "math_pipe_throttle",
    "mio_throttle", "lg_throttle", "no_instruction", "branch_resolving", "dispatch_stall",
)  # fmt: skip
COUNTERS.update({STALL.format(reason): f"stalled: {reason}" for reason in STALLS})


def _first(cases: Iterable[str]) -> str:
    return next(iter(cases))


Work = Callable[[Callable[..., None], str], None]


def _work(benchmark: Callable[..., None], implementation: str, **arguments: Any) -> Work:
    def run(measure: Callable[..., None], mode: str) -> None:
        benchmark(**arguments, mode=mode, implementation=implementation, measure=measure)

    return run


def _select(measure: Callable[..., None], mode: str) -> None:
    bench_select_tokens.bench_select_tokens(
        _first(bench_select_tokens.CASES), torch.float32, "triton", measure
    )


def _argmax(measure: Callable[..., None], mode: str) -> None:
    bench_upsample_argmax.bench_upsample_argmax(
        case=_first(bench_upsample_argmax.FRAMES),
        dtype=torch.float32,
        implementation="native",
        measure=measure,
    )


# Operator: the benchmark whose inputs it is profiled on.
WORK: dict[str, Work] = {
    "aggregate_affinity": _work(
        bench_aggregate_affinity.bench_aggregation,
        "native",
        variant="b1",
        case=_first(bench_aggregate_affinity.CASES),
        dtype=torch.float32,
    ),
    "upsample_cross_entropy": _work(
        bench_upsample_cross_entropy.bench_upsample_cross_entropy, "native", dtype=torch.float32
    ),
    "upsample_argmax": _argmax,
    "depthwise_gelu": _work(
        bench_depthwise_gelu.bench_depthwise_gelu,
        "native",
        case=_first(bench_depthwise_gelu.CASES),
        dtype=torch.float32,
    ),
    "focal_pool": _work(
        bench_focal_pool.bench_focal_pool,
        "native",
        case=_first(bench_focal_pool.CASES),
        dtype=torch.float32,
    ),
    "fuse_pyramid": _work(
        bench_fuse_pyramid.bench_fuse_pyramid,
        "native",
        case=_first(bench_fuse_pyramid.CASES),
        layout="",
        dtype=torch.float32,
    ),
    "focal_attention": _work(
        bench_focal_attention.bench_focal_attention,
        "triton",
        case=_first(bench_focal_attention.CASES),
        precision="bfloat16",
    ),
    "attend_selected": _work(
        bench_attend_selected.bench_attend_selected,
        "triton",
        case=_first(bench_attend_selected.CASES),
        precision="bfloat16",
    ),
    "masked_affinity": _work(
        bench_masked_affinity.bench_masked_affinity,
        "triton",
        case=_first(bench_masked_affinity.CASES),
        scale=0,
        precision="bfloat16",
    ),
    "select_tokens": _select,
    "add_layer_norm": _work(
        bench_add_layer_norm.bench_add_layer_norm,
        "triton",
        case=_first(bench_add_layer_norm.CASES),
        dtype=torch.float32,
    ),
}


def run_profiled(operator: str, report: Callable[[str], None] | None = None) -> None:
    """Runs an operator forward and backward once to set up, and once between profiler marks.

    Args:
        operator: One of :data:`WORK`.
        report: Where to print kernel times by PyTorch's profiler; without it ncu is watching.
    """

    def measure(
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        *,
        operator: str,
        mode: str,
        implementation: str,
        **_: Any,
    ) -> None:
        run = Measure.runner(function, inputs, mode, compiled=False)
        with implementation_of(operator.split("+"), implementation):
            run()
            if report is not None:
                _print_times(operator, run, report)
                return
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            run()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()

    WORK[operator](measure, "forward+backward")


def _print_times(operator: str, run: Callable[[], object], report: Callable[[str], None]) -> None:
    on_gpu = DEVICE == "cuda"
    kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=kinds) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    for event in profiler.key_averages():
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if time > 0:
            report(f"{operator} | {short_name(event.key)}: {time:.1f} us in {event.count} calls")


def short_name(kernel: str) -> str:
    """Returns a kernel's name without namespaces, arguments and return type."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|\b[A-Za-z_]\w*::", "", kernel)
    depth = 0
    for place, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:place]
            break
    return name.removeprefix("void ").strip()


def kernel_lines(output: str) -> list[str]:
    """Turns ncu's CSV output into a line for each kernel launch.

    Args:
        output: What ``ncu --csv`` printed, with its own and the program's other lines.

    Raises:
        ValueError: There is no table in it.
    """
    lines = output.splitlines()
    try:
        start = next(n for n, line in enumerate(lines) if line.startswith('"ID"'))
    except StopIteration:
        raise ValueError("ncu printed no table of counters") from None
    launches: dict[str, tuple[str, list[str]]] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        counter = COUNTERS.get(row["Metric Name"])
        if counter is None:
            continue
        _, values = launches.setdefault(row["ID"], (short_name(row["Kernel Name"]), []))
        unit = row["Metric Unit"]
        values.append(f"{counter} {row['Metric Value']}{f' {unit}' if unit else ''}")
    return [f"{name}: {', '.join(values)}" for name, values in launches.values()]


def profile_with_ncu(ncu: str, operator: str) -> list[str]:
    """Runs an operator under ncu; returns a line for each kernel.

    Raises:
        RuntimeError: ncu fails, for example because only administrators may read counters.
    """
    command = [
        ncu, "--csv", "--profile-from-start", "off", "--clock-control", "none",
        "--kernel-name-base", "demangled", "--metrics", ",".join(COUNTERS),
        sys.executable, "-m", "benchmarks.gpu.profile", operator, "--watched",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return [f"{operator} | {line}" for line in kernel_lines(result.stdout)]
    except ValueError as error:
        output = (result.stdout + result.stderr).strip()[-1500:]
        raise RuntimeError(f"{error} (exit status {result.returncode}):\n{output}") from error


def main() -> int:
    """Profiles the operator named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operator", choices=sorted(WORK))
    parser.add_argument("--watched", action="store_true", help="run it, as ncu is watching")
    options = parser.parse_args()
    if options.watched:
        run_profiled(options.operator)
        return 0
    ncu = shutil.which("ncu") if DEVICE == "cuda" else None
    if ncu is None:
        print("ncu was not found: times only", flush=True)
    else:
        try:
            print("\n".join(profile_with_ncu(ncu, options.operator)), flush=True)
            return 0
        except RuntimeError as error:
            print(f"{error}\nncu failed: times only", flush=True)
    run_profiled(options.operator, print)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
