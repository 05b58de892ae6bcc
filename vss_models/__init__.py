"""Published models for video semantic segmentation on the operators of `vss_kernels`."""

from vss_models.heads.segformer import ClipLogits
from vss_models.losses import ClipLoss
from vss_models.model import VideoSegmentor
from vss_models.registry import MODEL_NAMES, create_model

__all__ = ["MODEL_NAMES", "ClipLogits", "ClipLoss", "VideoSegmentor", "create_model"]
