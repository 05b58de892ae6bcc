"""upsample_argmax as a registered operator: fake and backends.

The schema stands in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.upsample_argmax import eager


def _run(
    logits: Tensor,
    size: tuple[int, int],
    through: tuple[int, int] | None,
    confidence: bool,
    align_corners: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    classes, probability = torch.ops.vss_kernels.upsample_argmax(
        logits.detach(), size, size if through is None else through, confidence, align_corners
    )
    return (classes, probability) if confidence else classes


def _fake(
    logits: Tensor,
    size: Sequence[int],
    through: Sequence[int],
    confidence: bool,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], size[0], size[1])
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int64
    probability_shape = shape if confidence else (0,)
    return (
        logits.new_empty(shape, dtype=dtype),
        logits.new_empty(probability_shape, dtype=torch.float32),
    )


if native.problem() is None:
    torch.library.register_fake("vss_kernels::upsample_argmax", _fake)


def _native_can_run(logits: Tensor, *options: Any) -> str | None:
    return native.refuses(logits)


operator = Operator(
    "upsample_argmax",
    [
        Implementation("native", _run, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.upsample_argmax), always, always),
    ],
)
