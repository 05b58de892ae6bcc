"""The table of targets: which loop of which kernel does what, and how fast it has to be.

Whoever changes a kernel changes its row here: the loop is found by the kind of instruction that
does its work, so most changes of a source need none.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu_model.flow import WORK

# The published sizes: maps of two clips of 480x480, and of one of 480x864.
LOSS_UNITS = 16 * 124 * 480 * 480  # pixels and classes
ARGMAX_UNITS = 124 * 480 * 853


@dataclass(frozen=True)
class Part:
    """A kernel of a target.

    Attributes:
        kernel: Part of its C++ name; it must fit one kernel.
        work: The kind of instruction, see ``Instruction.kind``, of which its innermost loop has
            more than any other.
        threads: Of a block.
        units_per_pass: Results that a lane makes in a pass through the loop.
        units: Results of the whole launch; None where the time is not modelled.
        blocks: Of the launch, where they may not fill the GPU. With the whole kernel as the loop
            they give the time, and ``units`` is not needed.
        up: Loops further out than the innermost one; None for the whole kernel.
        trips: How often each inner loop runs, in the order of ``Loop.descendants``.
        path: Kinds of instruction; of the paths through the loop, one with the most of them is
            taken, and of those the shortest.
        shared_bytes: Shared memory of a block, given at launch.
        conflict: Passes of a shared-memory access, 1 without bank conflicts.
        l1_hit: Fraction of global loads that hit the L1 cache.
    """

    kernel: str
    work: str
    threads: int
    units_per_pass: float = 1
    units: float | None = None
    blocks: int | None = None
    up: int | None = 0
    trips: tuple[int, ...] = ()
    path: tuple[str, ...] = WORK
    shared_bytes: int = 0
    conflict: float = 1.0
    l1_hit: float = 0.8


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Attributes:
        name: Operator, sizes and mode.
        operator: Public name, whose CUDA source is compiled.
        unit: What instructions are counted for.
        parts: Kernels whose times add up; instructions are counted in the first.
        instructions: The most for a unit, or None.
        microseconds: The most for the launch, or None.
        note: What the row leaves out.
    """

    name: str
    operator: str
    unit: str
    parts: tuple[Part, ...]
    instructions: float | None = None
    microseconds: float | None = None
    note: str = ""


DEPTHWISE_UNITS = 8 * 120 * 120 * 256  # pixels and channels of MiT-B1's first level
# A tile of depthwise_gelu's backward pass, with and without the pixels around it.
DEPTHWISE_HALO = (16 * 17) / (14 * 15)
# Two maps, or three and a fifth part more for the sums of tiles, at 4.27 TB/s.
DEPTHWISE_US, DEPTHWISE_BACKWARD_US = 55.0, 91.0

# Floats and bytes at 4.27 TB/s, the copy rate that was measured on an H200.
PYRAMID_FORWARD_US, PYRAMID_BACKWARD_US = 64.0, 37.0

# Scratch of gpu_kernel.h at 7x7 pixels a cell: parts, table and rows of a patch of at most 10x10.
FOCAL_SHARED_BYTES = 4 * (32 + 256 * 4 + 2 * 10 * 10 + 10 * 7)

# Loads of a 4x4 patch's neighbouring columns pass four times, weights, which all lanes share, once;
# counted over the kernels' loads and stores, 1.13 passes for each 32 bits.
_PATCH_CONFLICT = 1.2


def _aggregation(kernel: str, trips: tuple[int, ...], maps: int, shared_bytes: int) -> Part:
    """Returns a kernel of aggregate_affinity on B1's chains, a block for each map.

    Args:
        kernel: Its name without the chains.
        trips: Of the loops that fill parameters and clear planes.
        maps: 672 of 60x60 or 606 of 60x108.
        shared_bytes: Of a block.
    """
    threads = {672: 256, 606: 448}[maps]
    return Part(
        f"{kernel}<TwoLayerChains>",
        "FFMA",
        threads,
        units=maps * threads,
        up=None,
        trips=trips,
        shared_bytes=shared_bytes,
        conflict=_PATCH_CONFLICT,
        l1_hit=0.0,
    )


_FORWARD_60X60 = _aggregation("AggregatePatches", (2, 0, 0, 1, 1, 11), 672, 44576)
_BACKWARD_60X60 = _aggregation(
    "AggregatePatchesBackward", (2, 0, 0, 5, 1, 9, 1, 13, 9, 3, 4, 3, 2, 2), 672, 100560
)
_FORWARD_60X108 = _aggregation("AggregatePatches", (1, 0, 0, 1, 1, 11), 606, 80000)
_BACKWARD_60X108 = _aggregation(
    "AggregatePatchesBackward", (1, 0, 0, 3, 1, 9, 1, 13, 9, 3, 4, 3, 2, 1), 606, 167120
)

TARGETS = (
    Target(
        "upsample_cross_entropy, 16 maps to 480x480, forward",
        "upsample_cross_entropy",
        "pixel and class",
        (
            Part(
                "LossPatches<float>",
                "MUFU",
                threads=128,
                # 2 classes of 16 labels; 31 of 32 lanes, and 121 of 124 patches in a row, of whose
                # 484 labels 480 exist.
                units_per_pass=32 * 31 / 32 * 121 / 124 * (480 / 484) ** 2,
                units=LOSS_UNITS,
                path=("LDG", "SHFL"),
            ),
        ),
        instructions=6,
        microseconds=150,
    ),
    Target(
        "upsample_cross_entropy, 16 maps to 480x480, backward",
        "upsample_cross_entropy",
        "pixel and class",
        (
            Part(
                "LossPatchesBackward<float, true>",
                "STS",
                threads=128,
                # 16 classes of 16 labels; 30 of 32 lanes, 30 of 31 rows of patches, 124 of 128
                # classes.
                units_per_pass=256 * 30 / 32 * 30 / 31 * 124 / 128,
                units=LOSS_UNITS,
                up=1,
                trips=(1,),
                path=("MUFU", "LDG", "SHFL", "STG"),
                shared_bytes=4 * (2 * 2 * 16 * 32 + 32),
            ),
        ),
        instructions=13,
        microseconds=230,
    ),
    Target(
        "aggregate_affinity B1, 672 maps 60x60, forward",
        "aggregate_affinity",
        "thread of a map",
        (_FORWARD_60X60,),
        microseconds=60,
    ),
    Target(
        "aggregate_affinity B1, 672 maps 60x60, both",
        "aggregate_affinity",
        "thread of a map",
        (_BACKWARD_60X60, _FORWARD_60X60),
        microseconds=200,
    ),
    Target(
        "aggregate_affinity B1, 606 maps 60x108, forward",
        "aggregate_affinity",
        "thread of a map",
        (_FORWARD_60X108,),
        microseconds=95,
    ),
    Target(
        "aggregate_affinity B1, 606 maps 60x108, both",
        "aggregate_affinity",
        "thread of a map",
        (_BACKWARD_60X108, _FORWARD_60X108),
        microseconds=320,
    ),
    Target(
        "upsample_argmax, 124x120x216 to 480x853",
        "upsample_argmax",
        "pixel and class",
        (
            Part(
                "GpuArgmaxTile<false, float, 2>",
                "LDG",
                threads=96,
                # 4 classes of 4 rows; 853 of 864 columns and 480 of 484 rows.
                units_per_pass=16 * 853 / 864 * 480 / 484,
                units=ARGMAX_UNITS,
                blocks=121 * 9,
            ),
        ),
        instructions=12,
        microseconds=40,
    ),
    # 15 bands of rows, 17 of 2048 planes a block: two groups of columns a thread, three levels that
    # move on by at most 3 of 7 rows (really 7 rows in all three together).
    Target(
        "fuse_pyramid, 8 at 120x120, forward",
        "fuse_pyramid",
        "warp",
        (
            Part(
                "GpuFuseColumns<float, true>",
                "LDG",
                threads=256,
                blocks=15 * 121,
                up=None,
                trips=(1, 1, 2, 2, 3, 1, 0, 1, 0, 1, 0, 0),
                shared_bytes=4 * (32 + 3 * (8 * 2 + 30 * 12)),
            ),
        ),
        microseconds=1.5 * PYRAMID_FORWARD_US,
    ),
    # Four planes a block; tables; 16 rounds of eight rows: those at which a level moves on (the
    # ratios are 2, 4 and 8), the next rows' table, and for each level the groups of one, two and
    # four lines, with a thread's cells and their batches of three slots of 5, 9 or 17. Each byte
    # is read once, so that no load finds it in L1. A warp has the ends of two planes, whose banks
    # are out of step: counted over the addresses of all warps, 1.7 passes.
    Target(
        "fuse_pyramid, 8 at 120x120, backward",
        "fuse_pyramid",
        "warp",
        (
            Part(
                "GpuFuseBackward<float, true>",
                "LDG",
                threads=128,
                blocks=512,
                up=None,
                trips=(
                    *(1, 3, 1, 1, 2, 2, 1, 16),
                    *(0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0),
                    *(0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0),
                    *(1, 1, 0, 0, 0, 0, 2, 2),
                    *(1, 0, 0, 1, 3, 0, 0),
                    *(1, 1, 6, 0, 0, 0, 0),
                ),
                shared_bytes=4 * (32 + 24 + 2 * 105 + 125 * (3 + 4 * 10)),
                conflict=1.7,
                l1_hit=0.0,
            ),
        ),
        microseconds=2.5 * PYRAMID_BACKWARD_US,
    ),
    # The level of 7x7 pixels a cell, which takes longest: 49 pixels of 256 channels for each of 162
    # cells; 504 strips of 16 pixels. Paths are those of the busiest warp.
    Target(
        "focal_pool, a level of 480x480, both",
        "focal_pool",
        "warp",
        (
            Part(
                "GpuPoolCell<float, 4>",
                "LDG",
                threads=256,
                blocks=162,
                up=None,
                trips=(1, 1, 1, 1, 1, 1, 4, 1, 1, 0),
                shared_bytes=FOCAL_SHARED_BYTES,
                l1_hit=0.0,
            ),
            Part(
                "GpuPoolBackward<float, 4>",
                "SHFL",
                threads=256,
                blocks=162,
                up=None,
                trips=(1, *(0,) * 11, 2, 1, 1, 2, 0, 1),
                shared_bytes=FOCAL_SHARED_BYTES,
                l1_hit=0.0,
            ),
            Part(
                "GpuPoolBackward<float, 4>",
                "STG",
                threads=256,
                blocks=504,
                up=None,
                trips=(1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 1, 1, *(0,) * 6),
                shared_bytes=FOCAL_SHARED_BYTES,
                l1_hit=0.0,
            ),
            Part(
                "GpuPoolSums<float>",
                "LDG",
                threads=256,
                blocks=50,
                up=None,
                trips=(1, 1, 2, 0),
                l1_hit=0.0,
            ),
        ),
        microseconds=25,
    ),
    Target(
        "depthwise_gelu, 8 maps 120x120x256, forward",
        "depthwise_gelu",
        "pixel and channel",
        (
            Part(
                "ConvolveTile<float>",
                "MUFU",
                threads=128,
                units_per_pass=4,
                units=DEPTHWISE_UNITS,
                shared_bytes=3 * 1024,
            ),
        ),
        microseconds=1.5 * DEPTHWISE_US,
    ),
    Target(
        "depthwise_gelu, 8 maps 120x120x256, backward",
        "depthwise_gelu",
        "pixel and channel",
        (
            Part(  # the gradient of the convolution
                "ConvolveTileBackward<float, true>",
                "MUFU",
                threads=256,
                units_per_pass=2,
                units=DEPTHWISE_HALO * DEPTHWISE_UNITS,
                shared_bytes=45 * 1024,
            ),
            Part(  # its correlation
                "ConvolveTileBackward<float, true>",
                "LDS",
                threads=256,
                units_per_pass=2,
                units=DEPTHWISE_UNITS,
                shared_bytes=45 * 1024,
            ),
        ),
        microseconds=1.5 * DEPTHWISE_BACKWARD_US,
    ),
)
