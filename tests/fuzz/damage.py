"""Ways to damage a file's bytes."""

from __future__ import annotations

import numpy as np


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns a kind of damage and the bytes after it."""
    kinds = (_cut, _flip, _zero, _insert, _remove, _prepend, _scramble_head, _replace)
    kind = kinds[int(rng.integers(len(kinds)))]
    return kind.__name__.strip("_"), kind(bytearray(content), rng)


def _position(content: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(max(1, len(content))))


def _cut(content: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(content[: _position(content, rng)])


def _flip(content: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.integers(1, 20))):
        content[_position(content, rng)] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _zero(content: bytearray, rng: np.random.Generator) -> bytes:
    start = _position(content, rng)
    length = min(int(rng.integers(1, 400)), len(content) - start)
    content[start : start + length] = bytes(length)
    return bytes(content)


def _insert(content: bytearray, rng: np.random.Generator) -> bytes:
    start = _position(content, rng)
    content[start:start] = rng.bytes(int(rng.integers(1, 100)))
    return bytes(content)


def _remove(content: bytearray, rng: np.random.Generator) -> bytes:
    start = _position(content, rng)
    del content[start : start + int(rng.integers(1, 100))]
    return bytes(content)


def _prepend(content: bytearray, rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(1, 100))) + bytes(content)


def _scramble_head(content: bytearray, rng: np.random.Generator) -> bytes:
    head = min(64, len(content))
    content[:head] = rng.bytes(head)
    return bytes(content)


def _replace(content: bytearray, rng: np.random.Generator) -> bytes:
    contents = (b"", b"\0" * 5000, b"text\n", bytes(content[::-1]), rng.bytes(3000))
    return contents[int(rng.integers(len(contents)))]
