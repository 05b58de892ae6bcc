"""Argument checks shared by every public operator.

Each check raises an error that names the operator, the argument, what was expected and what came.
All of them look at metadata only (no device synchronisation), except :func:`check_range`, which
reads the values where :func:`values_are_checked`. :func:`check_tokens` also applies autocast, after
which alone the dtypes must agree.
"""

from __future__ import annotations

import numbers
import os
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs

SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(value: object) -> str:
    """Returns a short text for an error message: dtype and shape of a tensor, else the type."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def check_tensor(operator: str, name: str, value: object, layout: str) -> None:
    """Raises unless ``value`` is a tensor with one dimension per letter group of ``layout``.

    Args:
        operator: Public name of the operator.
        name: Name of the argument.
        value: What the caller passed.
        layout: Dimension names separated by commas, such as ``"B,H,W,C"``; empty for a scalar.

    Raises:
        TypeError: ``value`` is no tensor, or no dense one.
        ValueError: It has another number of dimensions.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a tensor ({layout}), got {describe(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{operator}: {name} must be a dense tensor, got layout {value.layout}")
    dims = len(layout.split(",")) if layout else 0
    if value.dim() != dims:
        raise ValueError(
            f"{operator}: {name} must have {dims} dimensions ({layout}), got {describe(value)}"
        )


def check_shape(operator: str, name: str, tensor: Tensor, expected: Sequence[int | None]) -> None:
    """Raises ``ValueError`` unless the shape equals ``expected``, where ``None`` fits any size."""
    shape = tensor.shape
    if shape == expected:  # the usual case, where all sizes are given
        return
    fits = len(shape) == len(expected)
    if fits:
        for have, want in zip(shape, expected, strict=True):
            fits = fits and (want is None or have == want)
    if not fits:
        text = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{operator}: {name} must have shape ({text}), got {tuple(shape)}")


def check_same_kind(operator: str, **tensors: Tensor) -> None:
    """Raises unless all tensors share one supported floating dtype and one device.

    Raises:
        TypeError: A dtype is not floating point, or the dtypes differ.
        ValueError: The devices differ.
    """
    first_name, first = next(iter(tensors.items()))
    dtype, device = first.dtype, first.device
    for name, tensor in tensors.items():
        if tensor.dtype not in SUPPORTED_DTYPES:
            raise TypeError(
                f"{operator}: {name} must be float32, float16, bfloat16 or float64, "
                f"got {tensor.dtype}"
            )
        if tensor.dtype != dtype:
            raise TypeError(
                f"{operator}: {name} is {tensor.dtype} but {first_name} is {dtype}; "
                "cast them to one dtype, or call the operator under torch.autocast"
            )
        if tensor.device != device:
            raise ValueError(
                f"{operator}: {name} is on {tensor.device} but {first_name} is on {device}; "
                "move them to one device"
            )


def values_are_checked(tensor: Tensor) -> bool:
    """Whether the contents of ``tensor`` are to be checked now.

    Reading values from a GPU stalls it, so there they are checked only under
    ``VSS_KERNELS_DEBUG=1``; while a graph is traced there are no values to check.
    """
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" or os.environ.get("VSS_KERNELS_DEBUG", "0") == "1"


def check_range(operator: str, name: str, tensor: Tensor, low: int, high: int) -> None:
    """Raises ``ValueError`` if an integer tensor has a value outside ``[low, high)``.

    Does nothing where :func:`values_are_checked` is false, nor where the tensor that was checked
    last comes again unchanged, as one choice of tokens does for each of several scales.
    """
    global _last_in_range
    if tensor.numel() == 0 or not values_are_checked(tensor):
        return
    state = None if tensor.is_inference() else (low, high, tensor._version)
    last, last_state = _last_in_range
    if state is not None and state == last_state and last() is tensor:
        return
    smallest, largest = (int(value) for value in torch.aminmax(tensor))
    if smallest < low or largest >= high:
        raise ValueError(
            f"{operator}: {name} must lie in [{low}, {high}), got values from "
            f"{smallest} to {largest}"
        )
    _last_in_range = weakref.ref(tensor), state


def note_range(tensor: Tensor, low: int, high: int) -> None:
    """Notes that values on the CPU are in ``[low, high)`` by construction, to be read no more.

    On a GPU they are read for the sake of debugging alone, whoever made them.
    """
    global _last_in_range
    if tensor.device.type == "cpu" and values_are_checked(tensor) and not tensor.is_inference():
        _last_in_range = weakref.ref(tensor), (low, high, tensor._version)


_last_in_range: tuple[Callable[[], Tensor | None], tuple[int, int, int] | None]
_last_in_range = (lambda: None), None
"""The tensor that was found or noted to be in range last, and the bounds and its version then."""


def check_index(operator: str, index: object, tokens: Tensor) -> None:
    """Raises unless ``index`` (B,R,S) holds int64 positions of ``tokens`` (B,R,N,channels).

    Raises:
        TypeError: ``index`` is no int64 tensor.
        ValueError: Its shape or device does not fit, or a position is outside ``[0, N)``.
    """
    check_tensor(operator, "index", index, "B,R,S")
    assert isinstance(index, Tensor)
    if index.dtype != torch.int64:
        raise TypeError(f"{operator}: index must be int64, got {index.dtype}")
    check_shape(operator, "index", index, (tokens.shape[0], tokens.shape[1], None))
    if index.device != tokens.device:
        raise ValueError(
            f"{operator}: index is on {index.device} but the tokens are on {tokens.device}; "
            "move them to one device"
        )
    check_range(operator, "index", index, 0, tokens.shape[2])


def check_tokens(name: str, target: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
    """Checks target tokens (B,Q,C) and reference tokens (B,R,N,C); casts them under autocast.

    Raises:
        TypeError: One is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, or the devices differ.
    """
    check_tensor(name, "target", target, "B,Q,C")
    check_tensor(name, "reference", reference, "B,R,N,C")
    target, reference = cast_inputs(target, reference)
    check_same_kind(name, target=target, reference=reference)
    batch, _, channels = target.shape
    check_shape(name, "reference", reference, (batch, None, None, channels))
    return target, reference


def check_logits(name: str, logits: Tensor, argument: str = "logits") -> None:
    """Checks class scores (N,K,h,w) with at least one class, row and column.

    Raises:
        TypeError: They are no tensor or have an unsupported dtype.
        ValueError: The shape does not fit.
    """
    check_tensor(name, argument, logits, "N,K,h,w")
    check_same_kind(name, **{argument: logits})
    if 0 in logits.shape[1:]:
        raise ValueError(
            f"{name}: {argument} must have at least one class, row and column, "
            f"got shape {tuple(logits.shape)}"
        )


def check_integer(operator: str, name: str, value: object) -> None:
    """Raises ``TypeError`` unless a value is an integer; one that is traced is, too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | torch.SymInt):
        raise TypeError(f"{operator}: {name} must be an integer, got {describe(value)}")


def check_flag(operator: str, name: str, value: object) -> None:
    """Raises ``TypeError`` unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{operator}: {name} must be True or False, got {describe(value)}")


def check_size(name: str, what: str, size: object) -> None:
    """Checks that a size is two positive integers.

    Raises:
        TypeError: It is no sequence of integers.
        ValueError: There are not two of them, or one is not positive.
    """
    if not isinstance(size, tuple | list):
        raise TypeError(f"{name}: {what} must be two positive sizes, got {describe(size)}")
    for side in size:
        check_integer(name, what, side)
    if len(size) != 2 or size[0] < 1 or size[1] < 1:
        raise ValueError(f"{name}: {what} must be two positive sizes, got {tuple(size)}")
