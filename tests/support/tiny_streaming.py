"""A tiny model and a moving video for the tests of streaming."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vss_models import VideoSegmentor, create_model
from vss_models.data import EvaluationTransform
from vss_models.inference.frame_ring import FrameRing
from vss_models.inference.streaming import StreamingSegmenter

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 32}
TRANSFORM = EvaluationTransform(scale=(85, 48))


def tiny_model(name: str, **overrides: Any) -> VideoSegmentor:
    """Returns a model with weights so large that labels depend on the frame and its references."""
    torch.manual_seed(5)
    model = create_model(name, 7, **{**SMALL, **overrides}).eval()
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, torch.nn.Conv2d) and module.out_channels == 7:
                module.weight.mul_(5)
            elif isinstance(module, torch.nn.Linear):
                module.weight.mul_(2)
    return model


def video(length: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Textured frames (L, H, W, 3) that move and change enough to give each frame other labels."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (height // 6 + 2, width // 6 + length, 3), np.uint8)
    large = texture.repeat(6, 0).repeat(6, 1)
    return np.stack([large[:height, 5 * t : 5 * t + width] for t in range(length)])


def rings(stream: StreamingSegmenter) -> list[FrameRing]:
    """What is kept of the frames of each shape that there were."""
    return [video.ring for video in stream._program._videos.values() if video.ring is not None]


def kept_bytes(stream: StreamingSegmenter) -> int:
    """Bytes of the storages that are kept of frames, whole storages even for views."""
    storages = {
        buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes()
        for ring in rings(stream)
        for buffer in ring.buffers
    }
    return sum(storages.values())
