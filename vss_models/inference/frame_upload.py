"""Frames on their way to a device, to fixed addresses there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PLACE_BYTES = 8
"""Bytes of a place's number, an int64."""


class FrameUpload:
    """Brings frames and the numbers of their places to a device, in one copy.

    On the way to a GPU they lie in memory that is locked, so that the copy does not hold up the
    caller. There are two such buffers: one is filled while the other is still read.

    Args:
        frames: Frames of the shape and dtype to come.
        num_places: Most places that come with them.
        device: Where they go.

    Attributes:
        places: (num_places,) int64 on the device.
        frames: As the argument, on the device.
    """

    def __init__(self, frames: Tensor, num_places: int, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        head = PLACE_BYTES * num_places
        size = head + frames.numel() * frames.element_size()
        with torch.inference_mode(False):
            buffers = [
                torch.zeros(size, dtype=torch.uint8, pin_memory=self._is_gpu) for _ in range(2)
            ]
            self._target = torch.zeros(size, dtype=torch.uint8, device=device)
        self._buffers = [(buffer, *self._parts(buffer, head, frames)) for buffer in buffers]
        self.places, self.frames = self._parts(self._target, head, frames)
        self._copied = [torch.cuda.Event() for _ in buffers] if self._is_gpu else []
        self._turn = 0

    @staticmethod
    def _parts(buffer: Tensor, head: int, like: Tensor) -> tuple[Tensor, Tensor]:
        frames = buffer[head:].view(like.dtype).view(like.shape)
        return buffer[:head].view(torch.int64), frames

    def __call__(self, frames: Tensor, places: Sequence[int]) -> None:
        """Starts to bring frames and their places; work that is launched later finds them there.

        Args:
            frames: On any device; they may be overwritten when this returns unless they are on a
                GPU themselves.
            places: At most as many as were announced; the numbers behind them are left undefined.
        """
        self._turn = 1 - self._turn
        buffer, buffer_places, buffer_frames = self._buffers[self._turn]
        if self._is_gpu:
            self._copied[self._turn].synchronize()  # two frames ago, so hardly ever a wait
        buffer_places[: len(places)] = torch.tensor(places)
        if frames.device == self._target.device and self._is_gpu:
            self.places.copy_(buffer_places, non_blocking=True)
            self.frames.copy_(frames)
        else:
            buffer_frames.copy_(frames)
            self._target.copy_(buffer, non_blocking=True)
        if self._is_gpu:
            self._copied[self._turn].record()


__all__ = ["FrameUpload"]
