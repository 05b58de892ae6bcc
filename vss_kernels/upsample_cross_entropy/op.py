"""upsample_cross_entropy as a registered operator: fakes and backends.

The schemas stand in ``csrc/library.cpp``; the extension provides the CPU and CUDA kernels and the
gradient (``csrc/upsample_cross_entropy/autograd.cpp``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.autocast import without_autocast
from vss_kernels._runtime.backends import Implementation, Operator, always
from vss_kernels.upsample_cross_entropy import eager

# Result, log-sum-exp of every pixel, and what one pixel's loss counts in the result.
LossParts = tuple[Tensor, Tensor, Tensor]


def _native_can_run(logits: Tensor, *options: Any) -> str | None:
    return native.refuses(logits)


def _run(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    loss, _, _ = torch.ops.vss_kernels.upsample_cross_entropy(
        logits, labels, class_weights, ignore_index, reduction, label_smoothing, align_corners
    )
    return loss


def _fake(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
) -> LossParts:
    loss_shape = labels.shape if reduction == "none" else ()
    return (
        logits.new_empty(loss_shape, dtype=torch.float32),
        logits.new_empty(labels.shape, dtype=torch.float32),
        logits.new_empty((), dtype=torch.float32),
    )


def _fake_backward(
    grad: Tensor,
    scale: Tensor,
    log_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    return logits.new_empty(logits.shape)


if native.problem() is None:
    torch.library.register_fake("vss_kernels::upsample_cross_entropy", _fake)
    torch.library.register_fake("vss_kernels::upsample_cross_entropy_backward", _fake_backward)

operator = Operator(
    "upsample_cross_entropy",
    [
        Implementation("native", _run, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.upsample_cross_entropy), always, always),
    ],
)
