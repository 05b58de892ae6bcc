"""Which way imports run among tests and benchmarks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Yields the names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports by a relative name"
            module = node.module or ""
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_import_neither_each_other_nor_the_benchmarks(path: Path) -> None:
    # The fuzz suite is one test in several files.
    allowed = {"support", "fuzz"} if "fuzz" in path.relative_to(TESTS).parts else {"support"}
    for module in imported_modules(path):
        package, *rest = module.split(".")
        assert package != "benchmarks", module
        assert package != "tests" or not rest or rest[0] in allowed, module


def test_what_is_looked_for_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text("from tests import test_a\n\n\ndef f():\n    import benchmarks.report\n")
    assert set(imported_modules(path)) == {"tests", "tests.test_a", "benchmarks.report"}
