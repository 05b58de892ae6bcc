"""Videos written for the tests with PyAV itself, not with the writer under test."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def moving_frames(count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames with smooth colours, so that chroma subsampling costs little, and some motion."""
    rows, columns = np.mgrid[:height, :width]
    return [
        np.stack(
            [
                127 + 100 * np.sin((columns + 3 * number) / 17),
                127 + 100 * np.cos(rows / 19 + number / 5),
                127 + 60 * np.sin((rows + columns) / 23),
            ],
            axis=-1,
        ).astype(np.uint8)
        for number in range(count)
    ]


def encode(
    path: Path,
    frames: list[np.ndarray],
    codec: str,
    times: list[int] | None = None,
    **options: str,
) -> Path:
    """Writes a file of 25 frames per second; ``times`` are those of the frames, in 1/25 s."""
    with av.open(f"file:{path}", "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number if times is None else times[number]
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
