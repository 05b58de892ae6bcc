"""Fused operators for video semantic segmentation."""

from vss_kernels.backends import BackendError, backend
from vss_kernels.focal.pool import focal_pool

__all__ = ["BackendError", "backend", "focal_pool"]
