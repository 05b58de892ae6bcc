"""Segmentation heads: what turns the features of a clip's frames into logits."""

from vss_models.heads.cffm import CFFMHead
from vss_models.heads.mrcfa import MRCFAHead
from vss_models.heads.segformer import ClipLogits, FrameState, SegFormerHead

__all__ = ["CFFMHead", "ClipLogits", "FrameState", "MRCFAHead", "SegFormerHead"]
