"""Reading ahead and writing behind, on threads: decoding, the model and encoding overlap.

The middle stage stays on the caller's thread. Queues are bounded, so a slow stage holds the others
back and memory stays bounded; order is kept, and an exception of a thread reaches the caller.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

CAPACITY = 4
"""Items that wait between two stages."""

PATIENCE = 5.0
"""Seconds that leaving the context waits for a source that does not answer."""


class ReadAhead(Generic[Item]):
    """Iterates over a source on a thread of its own; yields (number, item), numbers from 0.

    Used as a context manager, which ends the thread. An exception of the source is raised after the
    items before it.

    Args:
        source: Where the items come from.
        capacity: Items that may wait.
        newest_only: For live sources: an item that has not been taken when the next one comes is
            dropped. Its number is missing then.

    Raises:
        ValueError: If the capacity is not positive.
    """

    def __init__(
        self, source: Iterable[Item], capacity: int = CAPACITY, newest_only: bool = False
    ) -> None:
        _check_capacity(capacity)
        self._source = source
        self._capacity = 1 if newest_only else capacity
        self._newest_only = newest_only
        self._waiting: deque[tuple[int, Item]] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="read ahead", daemon=True)

    def __enter__(self) -> ReadAhead[Item]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(PATIENCE)

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                entry = self._waiting.popleft()
                self._changed.notify_all()
            yield entry

    def _read(self) -> None:
        try:
            for number, item in enumerate(self._source):
                if not self._offer(number, item):
                    return
        except BaseException as error:
            # Whatever it is, it belongs to the caller, who raises it.
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _offer(self, number: int, item: Item) -> bool:
        """Queues an item; returns whether more are wanted."""
        with self._changed:
            if self._newest_only:
                self._waiting.clear()
            self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._closed)
            if not self._closed:
                self._waiting.append((number, item))
                self._changed.notify_all()
            return not self._closed


class WriteBehind(Generic[Item]):
    """Hands items to a function on a thread of its own, one after the other.

    Used as a context manager, which waits until everything is handed over, also when it is left by
    an exception. An exception of the function is raised by the next call, or on leaving; the items
    after it are not handed over.

    Args:
        function: Takes an item.
        capacity: Items that may wait; a call waits while there are more.

    Raises:
        ValueError: If the capacity is not positive.
    """

    def __init__(self, function: Callable[[Item], object], capacity: int = CAPACITY) -> None:
        _check_capacity(capacity)
        self._function = function
        self._capacity = capacity
        self._waiting: deque[Item] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="write behind", daemon=True)

    def __call__(self, item: Item) -> None:
        """Queues an item."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._error)
            if self._error is not None:
                raise self._error
            self._waiting.append(item)
            self._changed.notify_all()

    def __enter__(self) -> WriteBehind[Item]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        # An exception that is on its way already came first.
        if self._error is not None and error is None:
            raise self._error

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                # It counts as waiting until it is done.
                item = self._waiting[0]
            try:
                self._function(item)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()


def _check_capacity(capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")


__all__ = ["CAPACITY", "ReadAhead", "WriteBehind"]
