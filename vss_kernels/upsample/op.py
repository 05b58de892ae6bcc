"""The implementations of upsample_cross_entropy and upsample_argmax."""

from __future__ import annotations

from vss_kernels.autocast import without_autocast
from vss_kernels.backends import Implementation, Operator, always
from vss_kernels.upsample import eager

cross_entropy_operator = Operator(
    "upsample_cross_entropy",
    [Implementation("eager", without_autocast(eager.upsample_cross_entropy), always, always)],
)

argmax_operator = Operator(
    "upsample_argmax",
    [Implementation("eager", without_autocast(eager.upsample_argmax), always, always)],
)
