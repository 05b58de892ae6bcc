"""Modules around the operators: what MRCFA and CFFM add to an encoder, and what ends a network."""

from vss_kernels.nn.attention import attend_few_keys
from vss_kernels.nn.dense import FusePyramid, UpsampleArgmax, UpsampleCrossEntropy
from vss_kernels.nn.feed_forward import depthwise_gelu_linear
from vss_kernels.nn.focal import FocalAttention, FocalBlock
from vss_kernels.nn.linear import TokenLinear, token_linear
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
    "attend_few_keys",
    "depthwise_gelu_linear",
    "token_linear",
]
