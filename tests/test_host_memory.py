"""Memory that is freed is there for the next tensor, without the operating system."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vss_models.host_memory import ask_for_huge_pages, keep_freed_memory

PAGE_FAULTS = """
import resource, sys, torch
from vss_models.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def frame():
    tensors = [torch.ones(8 * 2**18) for _ in range(4)]  # 8 MiB each

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    frame()
before = faults()
for _ in range(5):
    frame()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    # Where the C library begins; left alone it adapts, at times so that nothing is given back.
    beginning = {
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "THP_MEM_ALLOC_ENABLE": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS, how],
        env={**os.environ, **beginning},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ended.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_frames_reuse_the_memory_of_frames_before() -> None:
    usual, kept = page_faults("usual"), page_faults("keep")
    # Not none at all: where the heap cannot grow in one piece, some memory comes from elsewhere.
    assert kept < usual / 2


@pytest.mark.parametrize("most", [-1, 2**31])
def test_more_than_the_setting_takes_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"most must be 0 to 2147483647 bytes, got {most}"):
        keep_freed_memory(most)


def test_a_system_without_the_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()


def test_a_users_own_setting_of_huge_pages_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
