"""What changed, as git tells it: which rows of the table have to be modelled again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.gpu_model.tools import ROOT, ToolError

BASE_VARIABLE = "VSS_GPU_MODEL_BASE"
RECENT_COMMITS = 20
"""How far back a main branch is compared with itself: more than a push usually has."""


def _git(*arguments: str) -> str:
    """Runs git; returns what it printed.

    Raises:
        ToolError: It is missing or failed.
    """
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ToolError(f"git cannot be run: {error}") from error
    if result.returncode != 0:
        raise ToolError(result.stderr.strip() or f"git {' '.join(arguments)} failed")
    return result.stdout.strip()


def _commit(name: str) -> str | None:
    """Returns the commit that a name stands for, or None."""
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except ToolError:
        return None


def default_base() -> str | None:
    """Returns the commit since which changes are to be modelled.

    It is what ``VSS_GPU_MODEL_BASE`` names, if it is set; on a branch, where that left the main
    branch of ``origin``; on the main branch itself, and where there is no ``origin``, the commit
    ``RECENT_COMMITS`` before.

    Returns:
        The commit; None where git cannot tell what changed, as in a clone that is too shallow.

    Raises:
        ToolError: The variable does not name a commit.
    """
    if name := os.environ.get(BASE_VARIABLE):
        chosen = _commit(name)
        if chosen is None:
            raise ToolError(f"{BASE_VARIABLE}={name} names no commit that is here")
        return chosen
    head = _commit("HEAD")
    if head is None:
        return None
    for branch in ("origin/HEAD", "origin/main", "origin/master"):
        if _commit(branch) is None:
            continue
        try:
            base = _git("merge-base", "HEAD", branch)
        except ToolError:  # what both come from was not fetched
            return None
        if base != head:
            return base
        break
    return _commit(f"HEAD~{RECENT_COMMITS}")


def changed_files(base: str) -> set[Path]:
    """Returns the files that differ from a commit, those that git does not know included.

    Raises:
        ToolError: git cannot tell.
    """
    try:
        known = _git("diff", "--name-only", base)
        unknown = _git("ls-files", "--others", "--exclude-standard")
    except ToolError as error:
        raise ToolError(f"git cannot say what changed since {base}: {error}") from error
    return {ROOT / line for line in (*known.splitlines(), *unknown.splitlines())}
