"""Trained models at work: streaming, compiled execution, whole videos to files, export."""

from vss_models.inference.streaming import StreamingSegmenter

__all__ = ["StreamingSegmenter"]
