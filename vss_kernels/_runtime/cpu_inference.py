"""Whether a CPU may take ways of its own, faster ones, that have no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from vss_kernels._runtime.backends import forced_everywhere


def is_cpu_inference(*tensors: Tensor | None) -> bool:
    """Whether tensors are on a CPU and nobody wants their gradients.

    False under compilers and in exported files, which are made for PyTorch's own operators, and
    where ``vss_kernels.backend("eager")`` is forced.

    Args:
        *tensors: The tensors of a computation; None counts for nothing.
    """
    no_gradients = not torch.is_grad_enabled()
    for tensor in tensors:  # first, since this costs least and says most
        if tensor is None or (tensor.is_cpu and (no_gradients or not tensor.requires_grad)):
            continue
        return False
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not is_traced and forced_everywhere() != "eager"


__all__ = ["is_cpu_inference"]
