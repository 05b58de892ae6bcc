"""Whether a GPU may round float32 products to TF32: faster, with 10 bits of mantissa, not 23."""

from __future__ import annotations

import torch


class Tf32:
    """PyTorch's switches for TF32, and what they were before.

    The operators of `vss_kernels` follow the switch for matrix products.
    """

    def __init__(self) -> None:
        self._before: tuple[bool, bool] | None = None

    def allow(self, allowed: bool) -> None:
        """Sets whether matrix products and convolutions may round to TF32."""
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        if self._before is None:
            self._before = products.allow_tf32, convolutions.allow_tf32
        products.allow_tf32 = convolutions.allow_tf32 = allowed

    def restore(self) -> None:
        """Puts back what was set before the first :meth:`allow`."""
        if self._before is not None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before
            self._before = None


__all__ = ["Tf32"]
