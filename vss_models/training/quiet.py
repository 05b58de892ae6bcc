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


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drops Lightning's advertisements, and warnings about deprecated calls that Lightning makes.

    Other messages, and warnings about calls of this package, still appear.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=_CALLS_OF_LIBRARIES)
            yield
    finally:
        logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(name in record.getMessage() for name in _ADVERTISEMENTS)


__all__ = ["quiet_libraries"]
