"""The implementations of focal_attention."""

from __future__ import annotations

from vss_kernels.autocast import without_autocast
from vss_kernels.backends import Implementation, Operator, always
from vss_kernels.focal.attention import eager

operator = Operator(
    "focal_attention",
    [Implementation("eager", without_autocast(eager.focal_attention), always, always)],
)
