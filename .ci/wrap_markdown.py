"""Checks that the lines of Markdown files are at most 100 wide; wraps them with --fix.

Usage: python .ci/wrap_markdown.py [--fix] [FILE ...]; without files, all that git tracks.

Tables, headings, code, HTML and link definitions stay as they are, and so does a word, such as a
link's address, that is wider than a line. --fix wraps the paragraphs and list items that hold a
wide line and leaves all others alone.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

WIDTH = 100

_FENCE = re.compile(r"\s*(```|~~~)")
_MARKER = re.compile(r"\s*(?:[-*+]|\d+[.)]) +")
_KEPT = re.compile(r"\s*(?:\||#|<|>|\[[^\]]+\]: )| {4,}\S")
# A word that would begin a list item or a heading if it came first on a line.
_BEGINS_A_BLOCK = re.compile(r" (?=(?:[-*+]|#+|\d+[.)])(?: |$))")
_NO_BREAK = "\0"


def blocks(lines: Sequence[str]) -> Iterator[tuple[list[str], bool]]:
    """Splits lines into paragraphs, list items and what is kept.

    Args:
        lines: A file's lines without line ends.

    Yields:
        Adjacent lines, and whether they may be wrapped.
    """
    block: list[str] = []
    in_code = False
    for line in lines:
        is_fence = _FENCE.match(line) is not None
        continues = bool(block) and not _MARKER.match(line)
        kept = in_code or is_fence or not line.strip()
        # Within a list item an indented line continues its text.
        kept = kept or (_KEPT.match(line) is not None and not (continues and line.startswith(" ")))
        if block and (kept or _MARKER.match(line)):
            yield block, True
            block = []
        if kept:
            yield [line], False
        else:
            block.append(line)
        in_code ^= is_fence
    if block:
        yield block, True


def is_wide(line: str) -> bool:
    """Whether a line is too wide and could be broken."""
    return len(line) > WIDTH and len(wrapped([line])) > 1


def wrapped(block: Sequence[str]) -> list[str]:
    """Returns the lines of a paragraph or list item, as wide as they may be."""
    marker = _MARKER.match(block[0])
    first = marker[0] if marker else block[0][: len(block[0]) - len(block[0].lstrip())]
    text = " ".join(line.strip() for line in block)[len(first.lstrip()) :]
    lines = textwrap.wrap(
        _BEGINS_A_BLOCK.sub(_NO_BREAK, text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def wide_lines(text: str) -> list[int]:
    """Returns the numbers of the lines that are too wide."""
    found, number = [], 0
    for block, may_wrap in blocks(text.splitlines()):
        for line in block:
            number += 1
            if may_wrap and is_wide(line):
                found.append(number)
    return found


def fixed(text: str) -> str:
    """Returns the text with every paragraph and list item wrapped that holds a wide line."""
    lines: list[str] = []
    for block, may_wrap in blocks(text.splitlines()):
        lines += wrapped(block) if may_wrap and any(map(is_wide, block)) else block
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="wrap what is too wide")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    files = options.files
    if not files:
        listed = subprocess.check_output(["git", "ls-files", "*.md"], text=True)
        files = [Path(name) for name in listed.split()]
    status = 0
    for path in files:
        text = path.read_text()
        numbers = wide_lines(text)
        if numbers and options.fix:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(fixed(text))
            os.replace(temporary, path)
        elif numbers:
            status = 1
            for number in numbers:
                print(f"{path}:{number}: wider than {WIDTH} columns")
    if status:
        print("wrap them: python .ci/wrap_markdown.py --fix", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
