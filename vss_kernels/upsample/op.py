"""upsample_cross_entropy and upsample_argmax as registered operators: fakes, autograd, backends.

The schemas stand in ``csrc/ops.cpp``; the extension provides the CPU and CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vss_kernels import native
from vss_kernels.autocast import without_autocast
from vss_kernels.autograd import forbid_second_derivative
from vss_kernels.backends import Implementation, Operator, always
from vss_kernels.upsample import eager

# Result, log-sum-exp of every pixel, and what one pixel's loss counts in the result.
LossParts = tuple[Tensor, Tensor, Tensor]


def _native_can_run(logits: Tensor, *_: Any) -> str | None:
    return native.refuses(logits)


def _run_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    reduction: str,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    loss, _, _ = torch.ops.vss_kernels.upsample_cross_entropy(
        logits, labels, class_weights, ignore_index, reduction, label_smoothing
    )
    return loss


def _fake_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> LossParts:
    loss_shape = labels.shape if reduction == "none" else ()
    return (
        logits.new_empty(loss_shape, dtype=torch.float32),
        logits.new_empty(labels.shape, dtype=torch.float32),
        logits.new_empty((), dtype=torch.float32),
    )


def _fake_cross_entropy_backward(
    grad: Tensor,
    scale: Tensor,
    log_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: LossParts) -> None:
    logits, labels, class_weights, ignore_index, _, label_smoothing = inputs
    _, log_sums, scale = output
    # Only the loss has a gradient; the other two results serve the backward pass.
    ctx.mark_non_differentiable(log_sums, scale)
    ctx.save_for_backward(scale, log_sums, logits, labels, class_weights)
    ctx.options = (ignore_index, label_smoothing)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.vss_kernels.upsample_cross_entropy_backward(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return grad_logits, None, None, None, None, None


def _run_argmax(
    logits: Tensor, size: tuple[int, int], through: tuple[int, int] | None, confidence: bool
) -> Tensor | tuple[Tensor, Tensor]:
    classes, probability = torch.ops.vss_kernels.upsample_argmax(
        logits.detach(), size, size if through is None else through, confidence
    )
    return (classes, probability) if confidence else classes


def _fake_argmax(
    logits: Tensor, size: Sequence[int], through: Sequence[int], confidence: bool
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], size[0], size[1])
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int64
    probability_shape = shape if confidence else (0,)
    return (
        logits.new_empty(shape, dtype=dtype),
        logits.new_empty(probability_shape, dtype=torch.float32),
    )


if native.problem() is None:
    torch.library.register_fake("vss_kernels::upsample_cross_entropy", _fake_cross_entropy)
    torch.library.register_fake(
        "vss_kernels::upsample_cross_entropy_backward", _fake_cross_entropy_backward
    )
    torch.library.register_fake("vss_kernels::upsample_argmax", _fake_argmax)
    torch.library.register_autograd(
        "vss_kernels::upsample_cross_entropy", _backward, setup_context=_setup_context
    )
    forbid_second_derivative("upsample_cross_entropy")

cross_entropy_operator = Operator(
    "upsample_cross_entropy",
    [
        Implementation("native", _run_cross_entropy, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.upsample_cross_entropy), always, always),
    ],
)

argmax_operator = Operator(
    "upsample_argmax",
    [
        Implementation("native", _run_argmax, _native_can_run, native.problem),
        Implementation("eager", without_autocast(eager.upsample_argmax), always, always),
    ],
)
