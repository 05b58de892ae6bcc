"""Keeps what libraries say to their own ends off the screen of a training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_ADVERTISEMENTS = ("litlogger", "litmodels")
"""Packages of which Lightning recommends one in every run."""

_CALLS_OF_LIBRARIES = r"lightning\.(pytorch\.utilities\._pytree|pytorch\.cli)"
"""Modules of Lightning that call what other libraries have deprecated."""

_CALLBACKS_OF_A_TRAINING = "Be aware that when using `ckpt_path`, callbacks used to create"
"""Start of a warning that an evaluation lacks callbacks, which it has no use for."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drops Lightning's advertisements, and warnings about deprecated calls that Lightning makes.

    Other messages, and warnings about calls of this package, still appear; those to the user
    without the line of the program that they come from.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)
    format_before = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=_CALLS_OF_LIBRARIES)
            warnings.filterwarnings("ignore", message=_CALLBACKS_OF_A_TRAINING)
            yield
    finally:
        logger.removeFilter(_is_no_advertisement)
        warnings.formatwarning = format_before


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    if issubclass(category, UserWarning):
        return f"Warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(name in record.getMessage() for name in _ADVERTISEMENTS)


__all__ = ["quiet_libraries"]
