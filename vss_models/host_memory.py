"""How a process gets the CPU memory for its tensors, and keeps it.

A model frees tens of megabytes with every frame. The C library gives them back to the operating
system, which has to clear each page again before the next frame may write to it.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers of the two settings
_LARGEST_THRESHOLD = 32 * 2**20  # that glibc takes

_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's setting to ask for huge pages behind tensors of 2 MiB or more."""


def keep_freed_memory(most: int = 2**31 - 1) -> bool:
    """Lets this process reuse the memory of freed tensors instead of giving it back.

    The process then holds as much memory as it has ever needed at once. Tensors of more than 32 MiB
    are given back nevertheless. The setting is the whole process's.

    Args:
        most: Bytes to keep at most, below 2^31. Left alone, glibc comes to keep 64 MiB.

    Returns:
        Whether it could be set: it is one of glibc, the C library of most Linux systems.

    Raises:
        ValueError: If `most` is negative or too large.

    Example:
        >>> from vss_models.host_memory import keep_freed_memory
        >>> is_kept = keep_freed_memory()
    """
    if not 0 <= most < 2**31:
        raise ValueError(f"most must be 0 to {2**31 - 1} bytes, got {most}")
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(
        set_option(_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and set_option(_TRIM_THRESHOLD, most)
    )


def ask_for_huge_pages() -> None:
    """Lets PyTorch ask for huge pages, of which a large tensor needs few; before it is imported.

    A setting of the environment's own is left alone.
    """
    os.environ.setdefault(_HUGE_PAGES, "1")


__all__ = ["ask_for_huge_pages", "keep_freed_memory"]
