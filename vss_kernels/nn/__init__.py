"""Modules around the operators: the learned parts that MRCFA and CFFM add to an encoder."""

from vss_kernels.nn.focal import FocalAttention, FocalBlock
from vss_kernels.nn.relation import AffinityAggregation, ConvNorm, RelationAffinity, kept_share

__all__ = [
    "AffinityAggregation",
    "ConvNorm",
    "FocalAttention",
    "FocalBlock",
    "RelationAffinity",
    "kept_share",
]
