"""Stages on threads: order, bounds, exceptions, and what live sources drop."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from vss_models.inference.threads import ReadAhead, WriteBehind

WAIT = 20.0


class Source:
    """A source that hands out an item only when it is told to, and notes what was taken from it."""

    def __init__(self, length: int, error: Exception | None = None) -> None:
        self.length = length
        self.error = error
        self.permits = threading.Semaphore(0)
        self.taken = 0
        self.stopped = threading.Event()

    def allow(self, count: int) -> None:
        for _ in range(count):
            self.permits.release()

    def __iter__(self) -> Iterator[str]:
        try:
            for number in range(self.length):
                assert self.permits.acquire(timeout=WAIT)
                self.taken += 1
                yield f"frame {number}"
            if self.error is not None:
                raise self.error
        finally:
            self.stopped.set()


def wait_until(condition: threading.Condition, predicate: Callable[[], bool]) -> None:
    with condition:
        assert condition.wait_for(predicate, timeout=WAIT)


def numbers(items: ReadAhead[str]) -> list[int]:
    return [number for number, _ in items._waiting]


def test_every_item_comes_in_order() -> None:
    with ReadAhead(range(1000), capacity=3) as items:
        assert list(items) == [(number, number) for number in range(1000)]


def test_reading_ahead_is_bounded() -> None:
    source = Source(20)
    source.allow(20)
    with ReadAhead(source, capacity=3) as items:
        iterator = iter(items)
        assert next(iterator) == (0, "frame 0")
        wait_until(items._changed, lambda: len(items._waiting) == 3)
        # One was taken, three wait, and the reader holds at most one more.
        assert source.taken in (4, 5)
    assert source.stopped.wait(WAIT)
    assert source.taken <= 5


def test_an_exception_follows_the_items_before_it() -> None:
    source = Source(3, ValueError("cut off"))
    source.allow(3)
    seen = []
    with ReadAhead(source) as items, pytest.raises(ValueError, match="cut off"):
        seen.extend(items)
    assert seen == [(0, "frame 0"), (1, "frame 1"), (2, "frame 2")]


def test_leaving_early_ends_the_thread() -> None:
    source = Source(1000)
    source.allow(1000)
    with ReadAhead(source, capacity=2) as items:
        next(iter(items))
    assert not items._thread.is_alive()
    assert source.taken < 10


def test_the_newest_item_of_a_live_source_wins() -> None:
    source = Source(12)
    with ReadAhead(source, newest_only=True) as items:
        iterator = iter(items)
        source.allow(1)
        assert next(iterator) == (0, "frame 0")
        for newest in (5, 9):
            source.allow(newest + 1 - source.taken)
            wait_until(items._changed, lambda n=newest: numbers(items) == [n])
            assert next(iterator) == (newest, f"frame {newest}")
        source.allow(2)
        # A source that ends does not take its last item with it.
        assert list(iterator)[-1] == (11, "frame 11")


def test_writing_keeps_order_and_runs_behind() -> None:
    allowed = threading.Semaphore(0)
    written = []

    def write(item: int) -> None:
        assert allowed.acquire(timeout=WAIT)
        written.append((item, threading.current_thread().name))

    with WriteBehind(write, capacity=3) as sink:
        for item in range(3):
            sink(item)
        assert written == []
        for item in range(3, 50):
            allowed.release()
            sink(item)
        for _ in range(3):
            allowed.release()
    assert written == [(item, "write behind") for item in range(50)]


def test_a_failing_writer_stops_the_caller() -> None:
    written = []

    def write(item: int) -> None:
        if item == 2:
            raise OSError("disk full")
        written.append(item)

    def run(items: Iterable[int]) -> None:
        with WriteBehind(write, capacity=1) as sink:
            for item in items:
                sink(item)

    with pytest.raises(OSError, match="disk full"):
        run(itertools.count())
    assert written == [0, 1]
    with pytest.raises(OSError, match="disk full"):
        run([2])


def test_what_was_queued_is_written_after_an_exception() -> None:
    written: list[int] = []

    def run() -> None:
        with WriteBehind(written.append) as sink:
            for item in range(4):
                sink(item)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert written == [0, 1, 2, 3]


def test_capacity_is_checked() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        ReadAhead([], capacity=0)
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        WriteBehind(print, capacity=0)
