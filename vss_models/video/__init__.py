"""Frames in and out: video files, folders of frames, and H.264 files."""

from vss_models.video.rate import exact_rate
from vss_models.video.reader import FOLDER_RATE, FrameSource, VideoError, open_video
from vss_models.video.writer import VideoWriter

__all__ = [
    "FOLDER_RATE",
    "FrameSource",
    "VideoError",
    "VideoWriter",
    "exact_rate",
    "open_video",
]
