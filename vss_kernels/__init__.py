"""Fused operators for video semantic segmentation."""

from vss_kernels import nn
from vss_kernels._runtime.backends import BackendError, backend
from vss_kernels._version import __version__
from vss_kernels.add_layer_norm import add_layer_norm
from vss_kernels.aggregate_affinity import AggregationWeights, ConvNormLayer, aggregate_affinity
from vss_kernels.attend_selected import attend_selected
from vss_kernels.depthwise_gelu import depthwise_gelu
from vss_kernels.focal_attention import focal_attention
from vss_kernels.focal_attention.geometry import FocalGeometry, PooledLevel
from vss_kernels.focal_pool import focal_pool
from vss_kernels.fuse_pyramid import fuse_pyramid
from vss_kernels.masked_affinity import masked_affinity
from vss_kernels.patch import PatchedPart, PatchError, PatchReport, patch, unpatch
from vss_kernels.select_tokens import select_tokens
from vss_kernels.upsample_argmax import upsample_argmax
from vss_kernels.upsample_cross_entropy import upsample_cross_entropy

__all__ = [
    "AggregationWeights",
    "BackendError",
    "ConvNormLayer",
    "FocalGeometry",
    "PatchError",
    "PatchReport",
    "PatchedPart",
    "PooledLevel",
    "__version__",
    "add_layer_norm",
    "aggregate_affinity",
    "attend_selected",
    "backend",
    "depthwise_gelu",
    "focal_attention",
    "focal_pool",
    "fuse_pyramid",
    "masked_affinity",
    "nn",
    "patch",
    "select_tokens",
    "unpatch",
    "upsample_argmax",
    "upsample_cross_entropy",
]
