"""Frames in and out: video files, folders of frames, live sources, and H.264 files."""

from vss_models.video.live import LiveSource
from vss_models.video.rate import exact_rate
from vss_models.video.reader import FOLDER_RATE, FrameSource, VideoError, open_video
from vss_models.video.writer import VideoWriter

__all__ = [
    "FOLDER_RATE",
    "FrameSource",
    "LiveSource",
    "VideoError",
    "VideoWriter",
    "exact_rate",
    "open_video",
]
