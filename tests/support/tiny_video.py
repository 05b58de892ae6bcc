"""Videos made on the fly, a tiny model for them, and ``vss segment`` on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from vss_models import TrainedOn, VideoSegmentor, create_model
from vss_models.cli import main

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}
SIZE = ["--size", "96", "64"]


def tiny_model(name: str = "mrcfa_b0", **overrides: Any) -> VideoSegmentor:
    """Returns a model with random weights so large that labels depend on the frame."""
    torch.manual_seed(3)
    model = create_model(name, 5, **{**SMALL, **overrides}).eval()
    model.trained_on = TrainedOn(class_names=("road", "tree", "sky", "person", "car"))
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, torch.nn.Conv2d) and module.out_channels == 5:
                module.weight.mul_(5)
    return model


def make_frames(count: int, height: int, width: int) -> list[np.ndarray]:
    """Returns textured frames (H, W, 3) that move three pixels a frame."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 6 + 2, width, 3))
    large = texture.astype(np.uint8).repeat(6, 0).repeat(6, 1)
    return [np.ascontiguousarray(large[:height, 3 * t : 3 * t + width]) for t in range(count)]


def make_video(path: Path, count: int = 12, height: int = 46, width: int = 62) -> Path:
    """Writes an MP4 with its index at the front, so that cut off it can still be opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in make_frames(count, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def make_folder(path: Path, count: int = 5, height: int = 33, width: int = 47) -> Path:
    """Writes a folder of frames as PNG files."""
    path.mkdir(parents=True)
    for number, frame in enumerate(make_frames(count, height, width)):
        Image.fromarray(frame).save(path / f"frame_{number}.png")
    return path


def segment(source: Path, out: Path, checkpoint: Path, *more: str) -> int:
    """Runs ``vss segment`` on the CPU; returns its exit status."""
    options = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu", *SIZE]
    return main(["segment", str(source), *options, *more])


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    """Returns the label images that ``vss segment`` wrote, by their names."""
    labels = {}
    for path in sorted((folder / "labels").iterdir()):
        with Image.open(path) as picture:
            assert picture.mode == "P"
            labels[path.stem] = np.array(picture)
    return labels
