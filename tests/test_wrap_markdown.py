"""The width of Markdown: what is wrapped, what is left alone, and that its meaning stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "wrap_markdown.py"
WORDS = "word " * 30
ADDRESS = "https://example.org/" + "a" * 100

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs a checkout: .ci is not there")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WORDS, ["word " * 19 + "word", "word " * 9 + "word"]),
        (f"- {WORDS}\n- b\n", ["- " + "word " * 18 + "word", "  " + "word " * 10 + "word", "- b"]),
        (f"1. a\n   {WORDS}", ["1. a " + "word " * 18 + "word", "   " + "word " * 10 + "word"]),
        # What would become a list item at the start of a line stays behind the word before it.
        ("a" * 98 + " - b", ["a" * 98 + " -", "b"]),
        ("a" * 60 + " " + "b" * 39 + " - c", ["a" * 60, "b" * 39 + " - c"]),
    ],
)
def test_wide_text_is_wrapped(tmp_path, text, expected):
    path = tmp_path / "text.md"
    path.write_text(text)
    checked = run(path)
    assert checked.returncode == 1
    assert "wider than 100 columns" in checked.stdout
    assert path.read_text() == text
    assert run("--fix", path).returncode == 0
    assert path.read_text().splitlines() == expected
    assert run(path).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        f"| {WORDS} |\n|---|\n",
        f"# {WORDS}\n",
        f"```\n{WORDS}\n```\n",
        f"    {WORDS}\n",
        f"[name]: {ADDRESS} {WORDS}\n",
        f"{ADDRESS}\n",
        f"- {ADDRESS}\n",
        "short\nlines stay\nas they are\n",
    ],
)
def test_what_may_be_wide_is_left_alone(tmp_path, text):
    path = tmp_path / "text.md"
    path.write_text(text)
    checked = run(path)
    assert checked.returncode == 0, checked.stdout
    assert run("--fix", path).returncode == 0
    assert path.read_text() == text
