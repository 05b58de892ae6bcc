"""How functions are compiled, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

CUDA_GRAPH = "cuda-graph"
AUTOMATIC = "auto"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(
    function: Callable[Arguments, Result], how: str, in_one_piece: bool = True
) -> Callable[Arguments, Result]:
    """Compiles a function.

    Args:
        function: Tensors to tensors.
        how: "inductor" or another backend of torch.compile, or "cuda-graph", which compiles with
            inductor and replays on a GPU: a result is overwritten by the next call.
        in_one_piece: Whether it is an error if a part cannot be compiled.

    Returns:
        The function, which is compiled when it is called and anew for every new size.

    Raises:
        ValueError: If there is no such backend.
    """
    check_backend(how)
    if how == CUDA_GRAPH:
        return torch.compile(
            function, fullgraph=in_one_piece, dynamic=False, mode="reduce-overhead"
        )
    return torch.compile(function, fullgraph=in_one_piece, dynamic=False, backend=how)


def check_backend(how: str) -> None:
    """Checks that a way to compile exists.

    Args:
        how: See :func:`compiled`.

    Raises:
        ValueError: If there is no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if how != CUDA_GRAPH and how not in known:
        raise ValueError(
            f"compile must be None, {AUTOMATIC!r}, {CUDA_GRAPH!r} or a backend of torch.compile "
            f"({', '.join(known)}), got {how!r}"
        )


__all__ = ["AUTOMATIC", "CUDA_GRAPH", "check_backend", "compiled"]
