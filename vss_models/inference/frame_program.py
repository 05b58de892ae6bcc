"""A video's frame as one call: from the camera's bytes to labels, replayed on a GPU.

A call reads and writes fixed addresses: the frame and the numbers of its places among the kept
frames come in one copy, what is kept lies in a ring, and labels come out. So the same recording
serves every frame of a video, whatever its references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from vss_kernels import upsample_argmax
from vss_models.data.transforms import EvaluationTransform
from vss_models.heads.segformer import FrameState
from vss_models.inference.compile import AUTOMATIC, CUDA_GRAPH, compiled
from vss_models.inference.frame_ring import FrameRing
from vss_models.inference.frame_transform import (
    TransformTables,
    transform_frames,
    transform_tables,
)
from vss_models.inference.frame_upload import FrameUpload
from vss_models.inference.graphs import (
    CALLS_BEFORE_CAPTURE,
    MOST_SIZES,
    Capture,
    CudaCapture,
    SizedFunction,
)
from vss_models.inference.prepared import PreparedModel
from vss_models.model import PRECISIONS, VideoSegmentor

FrameFunction: TypeAlias = Callable[..., Tensor]


class LabelSize(NamedTuple):
    """How labels are made of logits.

    Attributes:
        size: Height and width of the labels.
        through: Height and width that logits are resized to first, those of the network's input.
    """

    size: tuple[int, int]
    through: tuple[int, int]


@dataclass(eq=False)
class _Video:
    """What frames of one shape need.

    Attributes:
        number: Tells it from others of the same shape.
        tables: How uint8 frames become the network's input; None for frames that are it already.
        upload: Brings frames to fixed addresses; None where calls are not recorded.
        ring: What is kept of frames; None before the first one, and for per-frame models.
    """

    number: int
    tables: TransformTables | None
    upload: FrameUpload | None
    ring: FrameRing | None = None


class FrameProgram:
    """Segments frames of a video, and keeps what later ones need of them.

    Args:
        model: The model, in evaluation mode. Its weights are those of the time of this call or of
            the latest :meth:`reset`.
        transform: How uint8 frames become the network's input.
        num_places: How many frames are kept.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast: faster
            on machines with bfloat16 units, half of the memory for what is kept, and some pixels
            between two classes get the other one.
        compile: None runs the model as it is. "inductor" compiles it with torch.compile; any other
            backend of torch.compile can be named too. "cuda-graph" compiles with inductor and
            replays the result as a CUDA graph, without the cost of launching kernels one by one.
            "auto" is "cuda-graph" on a CUDA device and None elsewhere; where compiling fails, it
            replays the model as it is, and a warning says why. Each of the first
            :data:`vss_models.inference.graphs.MOST_SIZES` sizes of the frames is compiled for
            itself; with further ones the model runs as it is, and a warning says so.
        capture: How calls are recorded; by default as CUDA graphs if `compile` is "cuda-graph".

    Raises:
        ValueError: If the precision or the backend is unknown, or "cuda-graph" is asked for without
            a GPU.
    """

    def __init__(
        self,
        model: VideoSegmentor,
        transform: EvaluationTransform,
        num_places: int,
        precision: str = "float32",
        compile: str | None = None,
        capture: Capture | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        weights = next(model.parameters())
        self._device, self._dtype = weights.device, weights.dtype
        self._falls_back = compile == AUTOMATIC
        if compile == AUTOMATIC:
            compile = CUDA_GRAPH if self._device.type == "cuda" else None
        if compile == CUDA_GRAPH and self._device.type != "cuda":
            raise ValueError(f"compile={CUDA_GRAPH!r} needs the model on a CUDA device")
        if capture is None and compile == CUDA_GRAPH:
            capture = CudaCapture()
        self.precision = precision
        self.is_compiled = compile is not None or capture is not None
        self.replays = capture is not None
        # A CPU's own resize of bytes is faster than arithmetic on tensors. Another class may do
        # anything.
        self.takes_bytes = type(transform) is EvaluationTransform and (
            self.replays or self._device.type == "cuda"
        )
        self._transform = transform
        self._num_places = num_places
        self._reduced = torch.bfloat16 if precision == "bfloat16" else None
        self._prepared = PreparedModel(model, self._reduced)
        self._videos: dict[tuple[torch.Size, torch.dtype], _Video] = {}
        self._num_videos = 0
        self._alone = self._sized(self._run_alone, compile, capture)
        self._related = self._sized(self._run_related, compile, capture)

    def _sized(
        self, run: FrameFunction, compile: str | None, capture: Capture | None
    ) -> SizedFunction:
        """The function for a bounded number of sizes, of the tensors that differ between frames."""
        how = "inductor" if compile == CUDA_GRAPH else compile
        fast = run if how is None else compiled(run, how)

        def of_tensors(function: FrameFunction) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda frames, places: function(self._video, self._size, frames, places)

        return SizedFunction(
            of_tensors(fast),
            of_tensors(run),
            capture,
            inputs_stay=True,
            falls_back=self._falls_back,
        )

    def reset(self) -> None:
        """Takes over the model's weights as they are now, and frees what only one video needed."""
        self._prepared.refresh()
        # Compiled code and recordings hold on to what they were made with.
        for shape in list(self._videos)[MOST_SIZES if self.is_compiled else 0 :]:
            del self._videos[shape]

    def autocast(self) -> torch.autocast:
        """The context in which the network computes in its precision."""
        reduced = self._reduced
        # Its cache would outlive a recording.
        return torch.autocast(
            self._device.type, reduced, enabled=reduced is not None, cache_enabled=False
        )

    @torch.no_grad()
    def __call__(
        self, frames: Tensor, places: Sequence[int], size: LabelSize | None = None
    ) -> Tensor:
        """Segments frames and keeps them.

        Args:
            frames: (N, 3, H, W) normalised; or uint8 (N, H, W, 3) if `takes_bytes`.
            places: Where to keep this frame, and then, oldest first, where its R references are
                kept, or nothing more if every frame is to be segmented on its own. All of them are
                below `num_places`.
            size: How to make labels; None for logits.

        Returns:
            The labels (N, h, w), or the logits (N, K, H/4, W/4).
        """
        video = self._video_of(frames)
        self._video, self._size = video, size
        with self.autocast():
            if video.upload is None:
                inputs = frames.to(self._device), torch.tensor(places, device=self._device)
            else:
                video.upload(frames, places)
                inputs = video.upload.frames, video.upload.places
            if self._num_places > 0 and video.ring is None:
                return self._run_first(video, size, *inputs)
            is_related = len(places) > 1
            if not self.is_compiled:
                run = self._run_related if is_related else self._run_alone
                return run(video, size, *inputs)
            call = self._related if is_related else self._alone
            result: Tensor = call(*inputs, variant=(video.number, size))
        # The next replay writes its result to the same address.
        return result.clone() if self.replays else result

    def warm_up(self, frames: Tensor, num_references: int, size: LabelSize) -> None:
        """Compiles, records and allocates for frames of a shape, whose contents do not matter.

        What is kept is not touched.
        """
        video = self._video_of(frames)
        kept = [] if video.ring is None else [buffer.clone() for buffer in video.ring.buffers]
        everywhere = [0] * num_references
        for _ in range(CALLS_BEFORE_CAPTURE + 2):  # the very first makes the ring
            self(frames, [0], size)
            if everywhere:
                self(frames, [0, *everywhere], size)
        if video.ring is not None:
            for buffer, before in zip(video.ring.buffers, kept, strict=bool(kept)):
                buffer.copy_(before)

    def _video_of(self, frames: Tensor) -> _Video:
        key = (frames.shape, frames.dtype)
        video = self._videos.get(key)
        if video is None:
            tables = None
            if frames.dtype == torch.uint8:
                height, width = frames.shape[1:3]
                tables = transform_tables(self._transform, (height, width), self._device)
            upload = None
            if self.replays:
                upload = FrameUpload(frames, 1 + self._prepared.model.num_references, self._device)
            video = self._videos[key] = _Video(self._num_videos, tables, upload)
            self._num_videos += 1
        return video

    def _encode(self, video: _Video, frames: Tensor) -> FrameState:
        images = frames
        if video.tables is not None:
            images = transform_frames(frames, video.tables).to(self._dtype)
        return self._prepared.model.encode_frame(images)

    def _run_first(
        self, video: _Video, size: LabelSize | None, frames: Tensor, places: Tensor
    ) -> Tensor:
        """Segments the first frame of a shape, which tells what there is to keep."""
        state = self._encode(video, frames)
        video.ring = FrameRing(state.reference, self._num_places)
        video.ring.write(video.ring.buffers, places[:1], state.reference)
        return _answer(self._prepared.model.head.classify_frame(state), size)

    def _run_alone(
        self, video: _Video, size: LabelSize | None, frames: Tensor, places: Tensor
    ) -> Tensor:
        state = self._encode(video, frames)
        if video.ring is not None:
            video.ring.write(video.ring.buffers, places[:1], state.reference)
        return _answer(self._prepared.model.head.classify_frame(state), size)

    def _run_related(
        self, video: _Video, size: LabelSize | None, frames: Tensor, places: Tensor
    ) -> Tensor:
        assert video.ring is not None
        # Before this frame takes the place of the oldest.
        references = video.ring.read(video.ring.buffers, places[1:])
        state = self._encode(video, frames)
        video.ring.write(video.ring.buffers, places[:1], state.reference)
        return _answer(self._prepared.model.head.decode_stacked(state, references), size)


def _answer(logits: Tensor, size: LabelSize | None) -> Tensor:
    return logits if size is None else upsample_argmax(logits, size.size, through=size.through)


__all__ = ["FrameProgram", "LabelSize"]
