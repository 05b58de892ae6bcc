"""Forward, loss and backward of a batch as one function, compiled and replayed where that helps.

Lightning runs these parts one by one, from Python. Here they are one call whose results are
gradients at fixed addresses, so that a GPU can replay the call as one CUDA graph. Under autocast
the matrices are narrowed for all layers at once, instead of one by one where each is used, and
their gradients widened likewise: the same numbers from a few kernels instead of hundreds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.func import functional_call

from vss_models.heads.segformer import ClipLogits
from vss_models.inference.compile import AUTOMATIC, CUDA_GRAPH, check_backend, compiled
from vss_models.inference.graphs import Capture, CudaCapture, SizedFunction
from vss_models.model import VideoSegmentor
from vss_models.narrowing import narrowed_parameters

logger = logging.getLogger("vss_models")

ALIGNMENT = 32
"""Numbers of which a gradient's place in the common buffer is a multiple: kernels that go over many
tensors load vectors only where all of them begin at one."""

PRECISIONS_IN_ONE_CALL = ("32-true", "64-true", "bf16-mixed")
"""The trainer's precisions in which a step is a function of the batch alone."""

Loss = Callable[[ClipLogits, Tensor], Tensor]


def chosen_execution(how: str | None, trainer: pl.Trainer) -> str | None:
    """Decides how a run's training steps are executed.

    Args:
        how: The setting ``compile`` of :class:`vss_models.training.SegmentationModule`.
        trainer: The run's trainer.

    Returns:
        None to leave forward and backward to Lightning, or a way to compile :class:`TrainingStep`.

    Raises:
        ValueError: If a way was named that is not possible here.
    """
    if how is None:
        return None
    # The module itself has not been moved there yet when it is set up.
    device = trainer.strategy.root_device
    if how == AUTOMATIC and device.type != "cuda":
        return None
    reason = _refused(how, device, trainer)
    if reason is None:
        return CUDA_GRAPH if how == AUTOMATIC else how
    if how != AUTOMATIC:
        raise ValueError(f"compile={how!r} is not possible: {reason}")
    logger.warning("training steps are not compiled: %s", reason)
    return None


def _refused(how: str, device: torch.device, trainer: pl.Trainer) -> str | None:
    """Why a run's steps cannot be executed in one call, or None."""
    if how == CUDA_GRAPH and device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the model is on {device}; use 'inductor'"
    if trainer.precision not in PRECISIONS_IN_ONE_CALL:
        return (
            f"trainer.precision={trainer.precision!r} scales the loss or converts the model; use "
            f"one of {', '.join(PRECISIONS_IN_ONE_CALL)}, or compile=null"
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return (
            f"trainer.strategy is {type(trainer.strategy).__name__}; use one device or 'ddp', or "
            "compile=null"
        )
    return None


def chosen_step(
    model: VideoSegmentor, loss: Loss, how: str | None, trainer: pl.Trainer
) -> TrainingStep | None:
    """Makes what runs a run's training steps; None leaves them to Lightning.

    Args:
        model: The model.
        loss: Logits and labels to a scalar.
        how: As for :func:`chosen_execution`.
        trainer: The run's trainer.

    Raises:
        ValueError: If a way was named that is not possible here.
    """
    chosen = chosen_execution(how, trainer)
    if chosen is None:
        return None
    return TrainingStep(model, loss, chosen, falls_back=how == AUTOMATIC)


class TrainingStep:
    """Computes the loss of a batch and leaves its gradients in the parameters.

    The gradients of all parameters lie in one buffer, which is made at the first call; a parameter
    that the loss does not depend on keeps no gradient.

    Args:
        model: The model, in training mode when it is called.
        loss: Logits and labels to a scalar.
        how: None runs the model as it is; otherwise see
            :func:`vss_models.inference.compile.compiled`. "cuda-graph" records the whole call.
        capture: How calls are recorded; by default as CUDA graphs if `how` is "cuda-graph".
        falls_back: Whether the model runs uncompiled, with a logged reason, if it cannot be
            compiled.

    Raises:
        ValueError: If there is no such way to compile.
    """

    def __init__(
        self,
        model: VideoSegmentor,
        loss: Loss,
        how: str | None = None,
        capture: Capture | None = None,
        falls_back: bool = False,
    ) -> None:
        self.model = model
        self.loss = loss
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        narrow = set(narrowed_parameters(model))
        self._is_narrowed = [name in narrow for name in self._names]
        self._used: list[bool] | None = None
        self._flat: Tensor | None = None
        self._gradients: list[Tensor] = []
        if how is not None:
            check_backend(how)
        self._how = how
        self._capture = CudaCapture() if capture is None and how == CUDA_GRAPH else capture
        self._falls_back = falls_back
        self._call: SizedFunction | None = None
        self._adds = False
        self._factor = 1.0

    @property
    def replays(self) -> bool:
        """Whether calls are recorded, and later ones replayed."""
        return self._capture is not None

    def __call__(
        self, clip: Tensor, labels: Tensor, adds: bool = False, factor: float = 1.0
    ) -> tuple[ClipLogits, Tensor]:
        """Runs forward, loss and backward.

        Args:
            clip: (B, T, 3, H, W) normalised.
            labels: (B, T, H, W) integer classes of every frame.
            adds: Whether the gradients are added to those of the call before.
            factor: What the gradients are multiplied by.

        Returns:
            The logits, and the loss as a scalar, both without a graph; a later call may overwrite
            them.
        """
        if self._call is None:
            # Not earlier, because a trainer may exchange layers until then.
            self._call = self._prepared()
        self._adds, self._factor = adds, factor
        result = self._call(clip, labels, variant=(adds, factor, self._autocast_dtype(clip)))
        for parameter, gradient in zip(self._targets(), self._gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient
        logits, loss = result
        return logits, loss

    def average_gradients(self) -> None:
        """Replaces the gradients by their mean over all processes."""
        assert self._flat is not None
        torch.distributed.all_reduce(self._flat)
        self._flat /= torch.distributed.get_world_size()

    def _prepared(self) -> SizedFunction:
        forward = self._forward
        if self._how is not None:
            synchronised = [m for m in self.model.modules() if isinstance(m, nn.SyncBatchNorm)]
            for norm in synchronised:
                # What it does depends on the other processes' batches, which cannot be traced.
                norm.forward = torch.compiler.disable(norm.forward)  # type: ignore[method-assign]
            backend = "inductor" if self._how == CUDA_GRAPH else self._how
            forward = compiled(self._forward, backend, in_one_piece=not synchronised)

        def fast(clip: Tensor, labels: Tensor) -> tuple[ClipLogits, Tensor]:
            return self._compute(forward, clip, labels)

        def plain(clip: Tensor, labels: Tensor) -> tuple[ClipLogits, Tensor]:
            return self._compute(self._forward, clip, labels)

        return SizedFunction(
            fast, plain, self._capture, "the training step", falls_back=self._falls_back
        )

    def _compute(
        self, forward: Callable[..., tuple[ClipLogits, Tensor]], clip: Tensor, labels: Tensor
    ) -> tuple[ClipLogits, Tensor]:
        kind, dtype = clip.device.type, self._autocast_dtype(clip)
        leaves = self._leaves(dtype)
        # Autocast's own cache would outlive a recording.
        with torch.autocast(kind, dtype, enabled=dtype is not None, cache_enabled=False):
            logits, loss = forward(leaves, clip, labels)
        with torch.autocast(kind, enabled=False):
            scale = torch.full_like(loss, self._factor)
            found = torch.autograd.grad(loss, leaves, scale, allow_unused=True)
        self._store(found)
        return ClipLogits(*(part.detach() for part in logits)), loss.detach()

    def _forward(
        self, leaves: list[Tensor], clip: Tensor, labels: Tensor
    ) -> tuple[ClipLogits, Tensor]:
        parameters = dict(zip(self._names, leaves, strict=True))
        logits = functional_call(self.model, parameters, (clip,))
        return logits, self.loss(logits, labels)

    def _leaves(self, dtype: torch.dtype | None) -> list[Tensor]:
        """The parameters, with narrowed copies of those that autocast narrows."""
        if dtype is None:
            return list(self._parameters)
        wide = [
            parameter.detach()
            for parameter, narrowed in zip(self._parameters, self._is_narrowed, strict=True)
            if narrowed
        ]
        copies = [torch.empty_like(parameter, dtype=dtype) for parameter in wide]
        if wide:
            torch._foreach_copy_(copies, wide)
        narrow = iter(copies)
        return [
            next(narrow).requires_grad_() if narrowed else parameter
            for parameter, narrowed in zip(self._parameters, self._is_narrowed, strict=True)
        ]

    def _store(self, found: tuple[Tensor | None, ...]) -> None:
        """Writes gradients to their addresses, or adds them, many in one kernel."""
        if self._used is None:
            self._allocate(found)
        gradients = [gradient for gradient in found if gradient is not None]
        groups: dict[tuple[torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
        for target, gradient in zip(self._gradients, gradients, strict=True):
            # Those with other strides would slow down all tensors of the call.
            group = (gradient.dtype, gradient.stride() == target.stride())
            groups.setdefault(group, []).append((target, gradient))
        store = torch._foreach_add_ if self._adds else torch._foreach_copy_
        for pairs in groups.values():
            targets, sources = zip(*pairs, strict=True)
            store(list(targets), list(sources))

    def _allocate(self, found: tuple[Tensor | None, ...]) -> None:
        self._used = [gradient is not None for gradient in found]
        targets = self._targets()
        sizes = [-(-target.numel() // ALIGNMENT) * ALIGNMENT for target in targets]
        self._flat = targets[0].new_zeros(sum(sizes))  # what lies between gradients stays zero
        self._gradients = [
            part[: target.numel()].view(target.shape)
            for part, target in zip(self._flat.split(sizes), targets, strict=True)
        ]

    def _targets(self) -> list[nn.Parameter]:
        assert self._used is not None
        return [p for p, used in zip(self._parameters, self._used, strict=True) if used]

    @staticmethod
    def _autocast_dtype(clip: Tensor) -> torch.dtype | None:
        kind = clip.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


__all__ = ["TrainingStep", "chosen_execution", "chosen_step"]
