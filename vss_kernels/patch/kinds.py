"""What is common to all replacements: how one is described, swapped in and tried out."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_log = logging.getLogger("vss_kernels")
_kinds: dict[str, Kind] = {}
_patched_classes: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}
_PATCH = "_vss_kernels_patch"

TOLERANCE = 1e-4
"""How far a replacement may be from the original on trial, as a fraction of the largest value."""


@dataclass(frozen=True)
class Kind:
    """One kind of module that operators can compute.

    Attributes:
        name: Its name; unique.
        operator: Public name of the operator that ``patch`` switches it by.
        what: What it is, for the report.
        looks_like: Whether a module is meant to be one, by the names of its parts.
        why_not: Why such a module cannot be replaced, or ``None``.
        run: Computes the method: takes the original method, the module and the call's arguments.
        cannot_take: Takes the module and the call's arguments; returns why the original method has
            to compute this call, or ``None``.
        example: Arguments to try a module with, in float32 on the CPU; ``None`` where the
            replacement calls the original itself.
        method: The method that is replaced.
    """

    name: str
    operator: str
    what: str
    looks_like: Callable[[nn.Module], bool]
    why_not: Callable[[nn.Module], str | None]
    run: Callable[..., Any]
    cannot_take: Callable[..., str | None]
    example: Callable[[nn.Module], tuple[Any, ...]] | None
    method: str = "forward"

    def __post_init__(self) -> None:
        _kinds[self.name] = self


def kinds_of(module: nn.Module) -> tuple[str, ...]:
    """Returns the names of the kinds that were swapped into a module."""
    return tuple(
        vars(parent)[_PATCH][1] for parent in type(module).__mro__ if _PATCH in vars(parent)
    )


def swap_in(module: nn.Module, kind: Kind) -> None:
    """Gives a module a class whose method is the replacement; everything else stays."""
    module.__class__ = _patched_class(type(module), kind.name)


def swap_out(module: nn.Module) -> None:
    """Gives a module its own class again."""
    module.__class__ = _own_class(type(module))


def _patched_class(original: type[nn.Module], kind_name: str) -> type[nn.Module]:
    key = (original, kind_name)
    if key not in _patched_classes:
        _patched_classes[key] = _make_class(original, _kinds[kind_name])
    return _patched_classes[key]


def _make_class(original: type[nn.Module], kind: Kind) -> type[nn.Module]:
    method = getattr(original, kind.method)

    # The signature stays, as trainers read the names of a model's arguments from it.
    @functools.wraps(method)
    def replacement(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        reason = kind.cannot_take(self, *args, **kwargs)
        if reason is None:
            return kind.run(method, self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            _log_once(kind.what, reason)
        return method(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # The class has no name to import it by; copies and pickles make it anew.
        getstate = getattr(self, "__getstate__", None)  # every object has one from Python 3.11 on
        state = self.__dict__ if getstate is None else getstate()
        return _new_instance, (_own_class(type(self)), kinds_of(self)[::-1]), state

    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce,
        kind.method: replacement,
        _PATCH: (original, kind.name),
    }
    return type(original.__name__, (original,), namespace)


def _own_class(patched: type[nn.Module]) -> type[nn.Module]:
    while _PATCH in vars(patched):
        patched = vars(patched)[_PATCH][0]
    return patched


def _new_instance(own: type[nn.Module], kind_names: Sequence[str]) -> nn.Module:
    patched = functools.reduce(_patched_class, kind_names, own)
    return patched.__new__(patched)


@functools.cache
def _log_once(what: str, reason: str) -> None:
    _log.info("patch: the original computes a call of the %s: %s", what, reason)


def reason_against(module: nn.Module, kind: Kind) -> str | None:
    """Returns why a module that looks like a kind is not replaced, or ``None`` if it can be."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript; patch the model that it was made of"
    if kind.method in vars(module):
        return f"its {kind.method} was replaced on the instance, by a wrapper or another patch"
    reason = kind.why_not(module)
    if reason is not None or kind.example is None:
        return reason
    return _trial(module, kind)


def traced(*_: Any, **__: Any) -> str | None:
    """Returns why deferred tensors cannot take a call that is traced, or ``None`` if it is not."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "it is traced, and deferred tensors are no part of a graph"
    return None


def hooked(modules: Sequence[nn.Module]) -> str | None:
    """Returns why parts that a replacement does not call must be called, or ``None``."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"its part {type(module).__name__} has hooks, which would no longer be called"
    return None


def _trial(module: nn.Module, kind: Kind) -> str | None:
    """Compares a copy with its replacement on random input; returns what is wrong, or ``None``."""
    assert kind.example is not None
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return "its parameters hold no values (device meta), so it cannot be tried"
    try:
        trial = copy.deepcopy(module).to("cpu", torch.float32).eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            arguments = kind.example(trial)
            expected = _tensors(trial(*arguments))
            reason = kind.cannot_take(trial, *arguments)
            if reason is not None:
                return reason
            swap_in(trial, kind)
            answers = _tensors(trial(*arguments))
    except Exception as error:  # whatever foreign code raises is the reason that is reported
        return f"trying it failed: {type(error).__name__}: {error}"
    return _difference(answers, expected)


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def _difference(answers: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    shapes = [tuple(tensor.shape) for tensor in answers]
    wanted = [tuple(tensor.shape) for tensor in expected]
    if shapes != wanted or not wanted:
        return f"it computes something else: tensors of shapes {wanted}, not {shapes}"
    for have, want in zip(answers, expected, strict=True):
        scale = want.double().abs().max().clamp(min=1e-30)
        error = float((have.double() - want.double()).abs().max() / scale)
        if not error <= TOLERANCE:
            return f"it computes something else: on trial {error:.1e} of the largest value off"
    return None
