"""How many kernels a GPU would be asked to launch, counted by tracing; no GPU is needed.

Tensors are fake, so nothing is computed: the operators that PyTorch dispatches are counted, each
with the number of kernels that it launches on a GPU. They are on the CPU for PyTorch, whose
autograd engine cannot run without a GPU on fake GPU tensors; autocast is given a GPU's rules, and
the operators of `vss_kernels` choose what they would choose on a GPU.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vss_kernels._runtime import checks, cpu_inference, triton_support

# What a GPU's autocast computes in float32, and a CPU's does not.
_WIDENED = ("layer_norm", "sum", "sum.dim_IntList")

# Memory is set aside or looked at in another way, or a profiler is told.
_WITHOUT_KERNEL = (
    "device", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided",
    "_unsafe_view", "is_same_size", "_record_function_enter_new", "_record_function_exit",
)  # fmt: skip

# Operators that launch more than one kernel. `index_put` with accumulation sorts its indices.
_KERNELS = {
    "native_layer_norm_backward": 2,
    "native_batch_norm": 2,
    "native_batch_norm_backward": 2,
    "upsample_bilinear2d_backward": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 3,
    "index_put": 9,
    "_index_put_impl": 9,
    "add_layer_norm_backward": 2,
    "focal_attention": 2,
    "focal_attention_backward": 6,
    "select_tokens": 3,
    "masked_affinity_backward": 3,
    "attend_selected_backward": 4,
    "aggregate_affinity_backward": 2,
    "depthwise_gelu_backward": 2,
    "focal_pool_backward": 3,
    "upsample_cross_entropy": 2,
}

# Operators that copy an input with gaps first.
_CONTIGUOUS = {
    "add_layer_norm", "add_layer_norm_backward", "select_tokens", "masked_affinity",
    "masked_affinity_backward", "attend_selected", "attend_selected_backward",
}  # fmt: skip

# Tensors that one launch of PyTorch's multi-tensor kernels takes, by the lists it goes over.
_TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


class KernelCounter(TorchDispatchMode):
    """Counts kernels by operator while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.kernels[str(operator).removeprefix("aten.")] += _launches(operator, args)
        return result

    @property
    def total(self) -> int:
        """All kernels."""
        return self.kernels.total()


def _launches(operator: Any, args: Any) -> int:
    name = operator._schema.name.split("::")[1]
    plain = name.rstrip("_")
    returns = operator._schema.returns
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if is_view or name in _WITHOUT_KERNEL or plain in _WITHOUT_KERNEL:
        return 0
    if plain.startswith("_foreach") or plain.startswith("_fused_adam"):
        lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
        count = len(lists)
        if plain.startswith("_fused_adam"):
            lists, count = lists[:1], 4
        elif operator._schema.name.endswith("_") is False:
            count += 1
        return math.ceil(len(lists[0]) / _TENSORS_A_LAUNCH[min(count, 5)])
    if plain == "convolution":
        return 1 + (args[2] is not None)
    if plain == "convolution_backward":
        return sum(args[-1])
    kernels = _KERNELS.get(plain, 1)
    if plain in _CONTIGUOUS:
        kernels += sum(isinstance(a, Tensor) and not a.is_contiguous() for a in args)
    return kernels


@contextmanager
def traced(half: bool = True) -> Iterator[KernelCounter]:
    """A context in which tensors are fake, kernels are counted, and bfloat16 is autocast to.

    Args:
        half: Whether there is autocast.
    """
    library = torch.library.Library("aten", "IMPL")

    def widened(operator: Any) -> Any:
        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                wide = [a.float() if isinstance(a, Tensor) else a for a in args]
                return operator(x.float() if x.is_floating_point() else x, *wide, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_support, "INTERPRETED", True)
        # A real CPU's ways.
        patch.setattr(cpu_inference, "is_cpu_inference", lambda *tensors: False)
        for module in (checks, sys.modules["vss_kernels.upsample_cross_entropy"]):
            patch.setattr(module, "values_are_checked", lambda tensor: False)
        for name in _WIDENED:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, widened(operator), "AutocastCPU")
        counter = KernelCounter()
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            counter,
        ):
            yield counter
    library._destroy()


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
