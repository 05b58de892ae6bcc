"""The implementations of fuse_pyramid; each takes the levels as separate arguments."""

from __future__ import annotations

from vss_kernels.autocast import without_autocast
from vss_kernels.backends import Implementation, Operator, always
from vss_kernels.pyramid import eager

operator = Operator(
    "fuse_pyramid",
    [Implementation("eager", without_autocast(eager.fuse_pyramid), always, always)],
)
