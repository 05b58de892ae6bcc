"""The implementations of select_tokens and masked_affinity."""

from __future__ import annotations

from vss_kernels.affinity import eager
from vss_kernels.autocast import without_autocast
from vss_kernels.backends import Implementation, Operator, always

select_tokens_operator = Operator(
    "select_tokens",
    [Implementation("eager", without_autocast(eager.select_tokens), always, always)],
)

masked_affinity_operator = Operator(
    "masked_affinity",
    [Implementation("eager", without_autocast(eager.masked_affinity), always, always)],
)
