"""Checks the extension in a wheel: it is there, without debug information, and not too large.

python .ci/check_wheel.py WHEEL
"""

from __future__ import annotations

import fnmatch
import sys
import zipfile

EXTENSION = "vss_kernels/_C*.so"
LARGEST = 25_000_000
"""Bytes of the extension, unpacked."""


def check(path: str) -> str:
    """Describes the extension in a wheel.

    Args:
        path: The wheel.

    Raises:
        SystemExit: There is no extension, it holds debug information, or it is too large.
    """
    with zipfile.ZipFile(path) as wheel:
        names = fnmatch.filter(wheel.namelist(), EXTENSION)
        if len(names) != 1:
            raise SystemExit(f"{path}: expected one {EXTENSION}, found {names or 'none'}")
        info, content = wheel.getinfo(names[0]), wheel.read(names[0])
    if b"\0.debug_info\0" in content:  # in the table of the sections' names
        raise SystemExit(f"{path}: {names[0]} holds debug information; link it with -s")
    size = f"{info.file_size / 1e6:.1f} MB"
    if info.file_size > LARGEST:
        raise SystemExit(f"{path}: {names[0]} has {size}, at most {LARGEST / 1e6:.0f} are wanted")
    return f"{names[0]}: {size}, {info.compress_size / 1e6:.1f} MB in the wheel"


if __name__ == "__main__":
    print(check(sys.argv[1]))
