"""Autograd pieces shared by the registered operators."""

from __future__ import annotations

from typing import Any

import torch


def forbid_second_derivative(name: str) -> None:
    """Makes differentiating ``<name>_backward`` an error that says what to do.

    Without this, PyTorch would quietly treat the backward kernel's result as a constant.

    Args:
        name: Registered name of the forward operator, without the namespace.
    """

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"vss_kernels.{name}: the fused kernel has no second derivative; compute it with "
            f'vss_kernels.backend("eager", "{name}")'
        )

    torch.library.register_autograd(f"vss_kernels::{name}_backward", refuse)
