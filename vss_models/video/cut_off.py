"""Containers that end early: what a file's own structure says about its length.

FFmpeg reports the end of such a file like that of a whole one, so the structure is read here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_EBML = bytes.fromhex("1a45dfa3")
_SEGMENT = bytes.fromhex("18538067")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_TRANSPORT_PACKETS = ((188, 0), (192, 4), (204, 0))
"""Sizes of MPEG transport stream packets and where their sync byte is."""


def cut_off_reason(path: Path) -> str | None:
    """Tells from a video file's structure that its end is missing.

    Args:
        path: A file in any format; those that are not known here pass.

    Returns:
        Why the file is incomplete, or None if nothing says so.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(1024)
        check = _check_of(start)
        file.seek(0)
        return None if check is None else check(file, size)


def _check_of(start: bytes) -> Callable[[BinaryIO, int], str | None] | None:
    if start.startswith(_EBML):
        return _matroska
    if start.startswith(_ASF_HEADER):
        return _asf
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return _gif
    if start[4:8] == b"ftyp":
        return _iso_boxes
    if start.startswith(b"FLV"):
        return _flash
    for length, sync in _TRANSPORT_PACKETS:
        if len(start) > 3 * length and all(start[sync + n * length] == 0x47 for n in range(4)):
            return lambda file, size: _transport(size, length)
    return None


def _promised(end: int, size: int) -> str | None:
    return f"its header promises {end} bytes, it has {size}" if end > size else None


def _matroska(file: BinaryIO, size: int) -> str | None:
    """Matroska and WebM: the Segment element, which holds everything, tells its length."""
    position = len(_EBML)
    for identity in (None, _SEGMENT):
        file.seek(position)
        head = file.read(12)
        if identity is not None:
            if not head.startswith(identity):
                return None
            head = head[len(identity) :]
            position += len(identity)
        length = 1 if not head else 9 - head[0].bit_length()
        if len(head) < length or length > 8:
            return None
        bits = 7 * length
        value = int.from_bytes(head[:length], "big") & ((1 << bits) - 1)
        position += length
        if value == (1 << bits) - 1:  # Unknown, as in live recordings.
            return None
        position += value
    return _promised(position, size)


def _asf(file: BinaryIO, size: int) -> str | None:
    """WMV: the file properties tell the size, unless they were written for a broadcast."""
    header_size, count = struct.unpack_from("<QI", file.read(30), 16)
    position = 30
    for _ in range(min(count, 100)):
        file.seek(position)
        head = file.read(104)
        if len(head) < 104 or position >= header_size:
            return None
        if head.startswith(_ASF_FILE_PROPERTIES):
            (declared,) = struct.unpack_from("<Q", head, 40)
            (flags,) = struct.unpack_from("<I", head, 88)
            return None if flags & 1 else _promised(declared, size)
        position += max(struct.unpack_from("<Q", head, 16)[0], 24)
    return None


def _gif(file: BinaryIO, size: int) -> str | None:
    """GIF: a row of blocks up to a mark; FFmpeg takes the first wrong one for the end."""
    content = file.read()

    def colours(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    try:
        position = 13 + colours(content[10])
        while content[position] != 0x3B:
            if content[position] == 0x2C:
                position += 11 + colours(content[position + 9])
            elif content[position] == 0x21:
                position += 2
            else:
                return f"what comes after {position} bytes is no part of a GIF"
            while content[position]:
                position += 1 + content[position]
            position += 1
    except IndexError:
        return "the mark that ends a GIF is missing"
    return None


def _iso_boxes(file: BinaryIO, size: int) -> str | None:
    """MP4, MOV and 3GP: a row of boxes, each of which tells its length."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        (length,) = struct.unpack_from(">I", head)
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack_from(">Q", head, 8)
        if length < 8:  # To the end of the file, or no box.
            return None
        position += length
    return _promised(position, size)


def _flash(file: BinaryIO, size: int) -> str | None:
    """FLV: each tag is followed by its size."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    start = size - 4 - length
    if length >= 11 and start >= 9:
        file.seek(start)
        if int.from_bytes(file.read(4)[1:], "big") + 11 == length:
            return None
    return "it does not end with a whole tag"


def _transport(size: int, length: int) -> str | None:
    rest = size % length
    return f"it ends after {rest} bytes of a packet of {length}" if rest else None


__all__ = ["cut_off_reason"]
