"""Segmentation heads: what turns the features of a clip's frames into logits."""

from .cffm import CFFMHead
from .mrcfa import MRCFAHead
from .segformer import ClipLogits, FrameState, SegFormerHead

__all__ = ["CFFMHead", "ClipLogits", "FrameState", "MRCFAHead", "SegFormerHead"]
