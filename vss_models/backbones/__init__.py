"""Encoders: images (N, 3, H, W) to four feature maps at strides 4, 8, 16 and 32.

An encoder is a module whose `channels` names the channels of its four levels and whose forward
returns their maps (N, C_i, H_i, W_i) as a list.
"""

from vss_models.backbones.mit import MixTransformer
from vss_models.backbones.timm_backbone import TimmBackbone

__all__ = ["MixTransformer", "TimmBackbone"]
