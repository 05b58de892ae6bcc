"""Which backend runs an operator, why, and how to force one.

Every operator owns one :class:`Operator` with its implementations in order of preference. Each
implementation has one ``can_run`` that returns ``None`` when it can take these arguments, or
the reason when it cannot. Probing logs the reason and moves on to the next implementation; forcing
raises it. The same function serves both, so the two can never disagree.

The backends are ``eager`` (plain PyTorch, everywhere), ``native`` (C++ on the CPU, CUDA on a
GPU) and ``triton`` (GPU; on the CPU only under ``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

BACKENDS = ("eager", "native", "triton")

_log = logging.getLogger("vss_kernels")
_operators: dict[str, Operator] = {}
_logged: set[tuple[str, str, str]] = set()


class BackendError(RuntimeError):
    """A forced backend cannot run an operator; the message says why.

    Example:
        >>> x = torch.zeros(1, 2, 2, 1, dtype=torch.float64)
        >>> try:
        ...     with vss_kernels.backend("triton", "focal_pool"):
        ...         vss_kernels.focal_pool(x, x.flatten(), x.sum(), (1, 1))
        ... except vss_kernels.BackendError as error:
        ...     print(error)
        focal_pool: the triton backend is forced but this operator has only native, eager
    """


@dataclass(frozen=True)
class Implementation:
    """One way to run an operator.

    Attributes:
        backend: One of :data:`BACKENDS`.
        run: Takes the operator's checked arguments and returns its result, with autograd.
        can_run: Takes the same arguments; returns ``None``, or why they cannot be run here.
        available: Takes nothing; returns ``None``, or why this machine or install lacks it.
    """

    backend: str
    run: Callable[..., Any]
    can_run: Callable[..., str | None]
    available: Callable[[], str | None]


def always(*_: Any) -> None:
    """The ``can_run`` and ``available`` of an implementation that runs anywhere."""
    return None


class Operator:
    """An operator's implementations, most preferred first; call it to run the chosen one."""

    def __init__(self, name: str, implementations: Sequence[Implementation]) -> None:
        self.name = name
        self.implementations = tuple(implementations)
        _operators[name] = self

    def __call__(self, *args: Any) -> Any:
        """Runs the chosen implementation."""
        return self.choose(*args).run(*args)

    def choose(self, *args: Any) -> Implementation:
        """Returns the implementation for these arguments.

        Raises:
            BackendError: The forced backend cannot run them.
        """
        forced = _forced.get(self.name, _forced.get("*"))
        if forced is not None:
            return self._demand(forced, *args)
        for implementation in self.implementations:
            reason = implementation.available()
            if reason is None:
                reason = implementation.can_run(*args)
                if reason is None:
                    return implementation
            if not torch.compiler.is_compiling():
                self._log_once(implementation.backend, reason)
        raise BackendError(f"{self.name}: no backend can run these arguments")

    def _demand(self, backend_name: str, *args: Any) -> Implementation:
        for implementation in self.implementations:
            if implementation.backend == backend_name:
                reason = _refusal(implementation, *args)
                if reason is not None:
                    raise BackendError(
                        f"{self.name}: the {backend_name} backend is forced but {reason}"
                    )
                return implementation
        have = ", ".join(implementation.backend for implementation in self.implementations)
        raise BackendError(
            f"{self.name}: the {backend_name} backend is forced but this operator has only {have}"
        )

    def _log_once(self, backend_name: str, reason: str) -> None:
        key = (self.name, backend_name, reason)
        if key not in _logged:
            _logged.add(key)
            _log.info("%s: not using the %s backend: %s", self.name, backend_name, reason)


def _refusal(implementation: Implementation, *args: Any) -> str | None:
    reason = implementation.available()
    return implementation.can_run(*args) if reason is None else reason


def operators() -> dict[str, Operator]:
    """Returns every registered operator by its public name."""
    return dict(_operators)


@contextmanager
def backend(name: str, *operator_names: str) -> Iterator[None]:
    """Forces a backend, for all operators or for those named, while the context lasts.

    The choice holds for the whole process (autograd runs backward passes on other threads) and
    contexts nest. Where contexts of several threads overlap, the one that was entered last decides
    for all of them; when the last of them is left, no choice remains. An operator that cannot run
    on the forced backend raises :class:`BackendError`.

    Args:
        name: ``"eager"``, ``"native"`` or ``"triton"``.
        operator_names: Public names of operators, such as ``"focal_pool"``; none means all.

    Raises:
        ValueError: The backend or an operator name is unknown.

    Example:
        >>> x, weight, bias = torch.randn(1, 4, 4, 8), torch.ones(4), torch.tensor(0.5)
        >>> with vss_kernels.backend("eager"):
        ...     expected = vss_kernels.focal_pool(x, weight, bias, (2, 2))
        >>> with vss_kernels.backend("eager", "focal_pool"):  # this operator only
        ...     same = vss_kernels.focal_pool(x, weight, bias, (2, 2))
        >>> torch.equal(same, expected)
        True
    """
    choice = _parse_names(name, operator_names)
    with _choices_lock:
        _choices.append(choice)
        _apply_choices()
    try:
        yield
    finally:
        with _choices_lock:
            # Its own entry, not the last one: contexts of other threads may have come since.
            _choices[:] = [other for other in _choices if other is not choice]
            _apply_choices()


def forced_everywhere() -> str | None:
    """Returns the backend that is forced for all operators, or ``None``."""
    return _forced.get("*")


def _apply_choices() -> None:
    global _forced
    forced: dict[str, str] = dict(_environment)
    for choice in _choices:
        forced = choice if "*" in choice else {**forced, **choice}
    _forced = forced


def _parse_names(name: str, operator_names: Sequence[str]) -> dict[str, str]:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    for operator_name in operator_names:
        if _operators and operator_name not in _operators:
            raise ValueError(
                f"unknown operator {operator_name!r}; choose from {', '.join(sorted(_operators))}"
            )
    return dict.fromkeys(operator_names or ("*",), name)


def parse_environment(text: str) -> dict[str, str]:
    """Reads ``VSS_KERNELS_BACKEND``: ``native``, or ``focal_pool=native,attend_selected=eager``.

    Raises:
        ValueError: A backend name is unknown or an entry is malformed.
    """
    forced: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        operator_name, separator, name = entry.partition("=")
        try:
            forced.update(
                _parse_names(name, (operator_name,)) if separator else _parse_names(entry, ())
            )
        except ValueError as error:
            raise ValueError(f"VSS_KERNELS_BACKEND={text!r}: {error}") from None
    return forced


_environment = parse_environment(os.environ.get("VSS_KERNELS_BACKEND", ""))
_choices: list[dict[str, str]] = []
"""Contexts of :func:`backend` that have been entered and not left, in this order."""
_choices_lock = threading.Lock()
_forced: dict[str, str] = _environment
"""What environment and contexts force together: a backend by operator name, or by ``*``."""
