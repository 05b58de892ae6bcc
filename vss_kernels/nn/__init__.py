"""Modules around the operators: the learned parts that MRCFA and CFFM add to an encoder."""

from vss_kernels.nn.focal import FocalAttention, FocalBlock
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
    "RelationAffinity",
]
