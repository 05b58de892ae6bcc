"""The implementations of aggregate_affinity."""

from __future__ import annotations

from vss_kernels.aggregation import eager
from vss_kernels.autocast import without_autocast
from vss_kernels.backends import Implementation, Operator, always

operator = Operator(
    "aggregate_affinity",
    [Implementation("eager", without_autocast(eager.aggregate_affinity), always, always)],
)
