"""Published models for video semantic segmentation on the operators of `vss_kernels`."""

from .heads.segformer import ClipLogits
from .losses import ClipLoss
from .registry import MODEL_NAMES, create_model
from .segmentor import VideoSegmentor

__all__ = ["MODEL_NAMES", "ClipLogits", "ClipLoss", "VideoSegmentor", "create_model"]
