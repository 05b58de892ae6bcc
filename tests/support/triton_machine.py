"""Where Triton's kernels run in these tests, and in which dtypes."""

from __future__ import annotations

import torch

from vss_kernels._runtime import triton_support

DEVICE = "cpu" if triton_support.INTERPRETED else "cuda"

# The interpreter computes bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16]
if not triton_support.INTERPRETED:
    DTYPES.append(torch.bfloat16)
