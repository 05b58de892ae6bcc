"""How a model is executed: in which precision, compiled or not, and a video frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vss_models.inference.graphs import CudaCapture, SizedFunction, cloned
from vss_models.model import PRECISIONS, VideoSegmentor

CUDA_GRAPH = "cuda-graph"
AUTOMATIC = "auto"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
FrameFunction = Callable[[Tensor, Sequence[Any]], tuple[Tensor, Any]]


class FrameProgram:
    """Segments a frame given what was kept of its references; one function of tensors.

    Args:
        model: The model, in evaluation mode.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast: faster
            on machines with bfloat16 units, half of the memory for what is kept, and some pixels
            between two classes get the other one.
        compile: None runs the model as it is. "inductor" compiles it with torch.compile; any other
            backend of torch.compile can be named too. "cuda-graph" compiles with inductor and
            replays the result as a CUDA graph, without the cost of launching kernels one by one.
            "auto" is "cuda-graph" on a CUDA device and None elsewhere. Each of the first
            :data:`vss_models.inference.graphs.MOST_SIZES` sizes of the frames is compiled for
            itself; with further ones the model runs as it is, and a warning says so.

    Raises:
        ValueError: If the precision or the backend is unknown, or "cuda-graph" is asked for without
            a GPU.
    """

    def __init__(
        self, model: VideoSegmentor, precision: str = "float32", compile: str | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        self.model = model
        self.precision = precision
        device = next(model.parameters()).device
        if compile == AUTOMATIC:
            compile = CUDA_GRAPH if device.type == "cuda" else None
        self.replays = compile == CUDA_GRAPH
        if self.replays and device.type != "cuda":
            raise ValueError(f"compile={CUDA_GRAPH!r} needs the model on a CUDA device")
        self._alone = self._sized(self._run_alone, compile)
        self._related = self._sized(self._run_related, compile)

    @property
    def is_compiled(self) -> bool:
        """Whether the model is compiled, which :meth:`StreamingSegmenter.warm_up` can do early."""
        return self._alone is not None

    def _sized(self, function: FrameFunction, compile: str | None) -> SizedFunction | None:
        """The function for a bounded number of sizes, taking its tensors one by one."""
        if compile is None:
            return None
        fast = compiled(function, "inductor" if compile == CUDA_GRAPH else compile)
        capture = CudaCapture() if compile == CUDA_GRAPH else None

        def nested(run: FrameFunction) -> Callable[..., tuple[Tensor, Any]]:
            def call(*tensors: Tensor) -> tuple[Tensor, Any]:
                images, references = pytree.tree_unflatten(list(tensors), self._layout)
                return run(images, references)

            return call

        return SizedFunction(nested(fast), nested(function), capture)

    def __call__(self, images: Tensor, references: Sequence[Any]) -> tuple[Tensor, Any]:
        """Segments frames.

        Args:
            images: (N, 3, H, W) normalised.
            references: `FrameState.reference` of the R earlier frames, oldest first, or none at
                all: then every frame is segmented on its own.

        Returns:
            The logits (N, K, H/4, W/4), and what to keep of these frames.
        """
        sized = self._related if references else self._alone
        plain = self._run_related if references else self._run_alone
        reduced = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
            if sized is None:
                return plain(images, references)
            tensors, self._layout = pytree.tree_flatten((images, list(references)))
            logits, reference = sized(*tensors)
        # The next replay writes its results to the same addresses.
        return cloned((logits, reference)) if self.replays else (logits, reference)

    def _run_alone(self, images: Tensor, references: Sequence[Any]) -> tuple[Tensor, Any]:
        state = self.model.encode_frame(images)
        return self.model.head.classify(state.fused), state.reference

    def _run_related(self, images: Tensor, references: Sequence[Any]) -> tuple[Tensor, Any]:
        state = self.model.encode_frame(images)
        return self.model.decode(state, references), state.reference


def compiled(
    function: Callable[Arguments, Result], how: str, in_one_piece: bool = True
) -> Callable[Arguments, Result]:
    """Compiles a function.

    Args:
        function: Tensors to tensors.
        how: "inductor" or another backend of torch.compile, or "cuda-graph", which compiles with
            inductor and replays on a GPU: a result is overwritten by the next call.
        in_one_piece: Whether it is an error if a part cannot be compiled.

    Returns:
        The function, which is compiled when it is called and anew for every new size.

    Raises:
        ValueError: If there is no such backend.
    """
    check_backend(how)
    if how == CUDA_GRAPH:
        return torch.compile(
            function, fullgraph=in_one_piece, dynamic=False, mode="reduce-overhead"
        )
    return torch.compile(function, fullgraph=in_one_piece, dynamic=False, backend=how)


def check_backend(how: str) -> None:
    """Checks that a way to compile exists.

    Args:
        how: See :func:`compiled`.

    Raises:
        ValueError: If there is no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if how != CUDA_GRAPH and how not in known:
        raise ValueError(
            f"compile must be None, {AUTOMATIC!r}, {CUDA_GRAPH!r} or a backend of torch.compile "
            f"({', '.join(known)}), got {how!r}"
        )


__all__ = ["AUTOMATIC", "CUDA_GRAPH", "PRECISIONS", "FrameProgram", "check_backend", "compiled"]
