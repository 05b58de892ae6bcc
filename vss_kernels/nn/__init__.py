"""Modules around the operators: what MRCFA and CFFM add to an encoder, and what ends a network."""

from vss_kernels.nn.attention import attend_few_keys
from vss_kernels.nn.dense import FusePyramid, UpsampleArgmax, UpsampleCrossEntropy
from vss_kernels.nn.feed_forward import depthwise_gelu_linear
from vss_kernels.nn.focal import FocalAttention, FocalBlock
from vss_kernels.nn.halved_fusion import fuse_halved
from vss_kernels.nn.linear import TokenLinear, token_linear
from vss_kernels.nn.norm import add_norm
from vss_kernels.nn.pixel_logits import resize_pixel_logits
from vss_kernels.nn.relation import (
    AffinityAggregation,
    AggregationLayers,
    ConvNorm,
    RelationAffinity,
)

__all__ = [
    "AffinityAggregation",
    "AggregationLayers",
    "ConvNorm",
    "FocalAttention",
    "FocalBlock",
    "FusePyramid",
    "RelationAffinity",
    "TokenLinear",
    "UpsampleArgmax",
    "UpsampleCrossEntropy",
    "add_norm",
    "attend_few_keys",
    "depthwise_gelu_linear",
    "fuse_halved",
    "resize_pixel_logits",
    "token_linear",
]
