"""Fused operators for video semantic segmentation."""

from vss_kernels.affinity import masked_affinity, select_tokens
from vss_kernels.aggregation import AggregationWeights, ConvNormLayer, aggregate_affinity
from vss_kernels.attend import attend_selected
from vss_kernels.backends import BackendError, backend
from vss_kernels.focal.pool import focal_pool

__all__ = [
    "AggregationWeights",
    "BackendError",
    "ConvNormLayer",
    "aggregate_affinity",
    "attend_selected",
    "backend",
    "focal_pool",
    "masked_affinity",
    "select_tokens",
]
