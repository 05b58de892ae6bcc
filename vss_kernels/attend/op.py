"""The implementations of attend_selected."""

from __future__ import annotations

from vss_kernels.attend import eager
from vss_kernels.autocast import without_autocast
from vss_kernels.backends import Implementation, Operator, always

operator = Operator(
    "attend_selected",
    [Implementation("eager", without_autocast(eager.attend_selected), always, always)],
)
