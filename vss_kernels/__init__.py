"""Fused operators for video semantic segmentation."""

from vss_kernels.affinity import masked_affinity, select_tokens
from vss_kernels.aggregation import AggregationWeights, ConvNormLayer, aggregate_affinity
from vss_kernels.attend import attend_selected
from vss_kernels.backends import BackendError, backend
from vss_kernels.focal.attention import focal_attention
from vss_kernels.focal.geometry import FocalGeometry, PooledLevel
from vss_kernels.focal.pool import focal_pool
from vss_kernels.pyramid import fuse_pyramid
from vss_kernels.upsample import upsample_argmax, upsample_cross_entropy

__all__ = [
    "AggregationWeights",
    "BackendError",
    "ConvNormLayer",
    "FocalGeometry",
    "PooledLevel",
    "aggregate_affinity",
    "attend_selected",
    "backend",
    "focal_attention",
    "focal_pool",
    "fuse_pyramid",
    "masked_affinity",
    "select_tokens",
    "upsample_argmax",
    "upsample_cross_entropy",
]
