"""CFFM's window attention: focal_attention."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vss_kernels.focal_attention.geometry import (
    FocalGeometry,
    focal_geometry,
    relative_position_index,
)
from vss_kernels.nn.focal import assemble_bias, attend_maps
from vss_kernels.patch.kinds import Kind, hooked

_TABLE = "relative_position_bias_table"
_CLIPS = f"{_TABLE}_to_windows_clips"


def _looks_like(module: nn.Module) -> bool:
    return (
        {"qkv", "proj", _CLIPS} <= dict(module.named_children()).keys()
        and isinstance(getattr(module, _TABLE, None), Tensor)
        and "x_all" in inspect.signature(module.forward).parameters
    )


def _side(value: Any) -> int:
    """The side of a square that is given as a number or as two equal ones."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"window_size must be square, not {value}")
    return int(sides.pop())


def _geometry(module: Any) -> FocalGeometry:
    """Reads the geometry from the module's attributes and the sizes of its tables.

    Raises:
        AttributeError: An attribute is missing.
        ValueError: The settings or tables are not those of one target and its references.
    """
    window = _side(module.window_size)
    tables = getattr(module, f"{_TABLE}_to_windows")
    if len(tables) != 1:
        raise ValueError(f"it must have one table for the pooled target, not {len(tables)}")
    target_kernel = round(tables[0].shape[-1] ** 0.5) + 1 - window
    return focal_geometry(
        window,
        _side(module.expand_size),
        list(module.focal_l_clips),
        list(module.focal_kernel_clips),
        target_kernel,
    )


def _why_not(module: Any) -> str | None:
    try:
        geometry = _geometry(module)
    except (AttributeError, TypeError, ValueError) as error:
        return str(error)
    dim, heads, side = module.qkv.in_features, module.num_heads, geometry.window
    shapes = {
        _TABLE: ((2 * side - 1) ** 2, heads),
        f"{_TABLE}_to_neighbors": (1, heads, side**2, geometry.around_keys),
        f"{_TABLE}_to_windows.0": (heads, (side + geometry.pooled[0].kernel - 1) ** 2),
        "qkv.weight": (3 * dim, dim),
        "proj.weight": (dim, dim),
    }
    for position, level in enumerate(geometry.pooled[1:]):
        shapes[f"{_CLIPS}.{position}"] = (heads, (side + level.kernel - 1) ** 2)
    biases = {"qkv.bias", "proj.bias"}
    parameters = {name: tuple(value.shape) for name, value in module.named_parameters()}
    for name, shape in shapes.items():
        if parameters.get(name) != shape:
            return f"{name} must have shape {shape}, not {parameters.get(name)}"
    surplus = sorted(parameters.keys() - shapes.keys() - biases)
    if surplus:
        return f"it has the parameter {surplus[0]}, which CFFM's attention has not"
    if abs(module.scale - (dim // heads) ** -0.5) > 1e-6:
        return f"it scales queries by {module.scale}, not by 1 over the root of a head's channels"
    for part in module.modules():
        if isinstance(part, nn.Dropout) and part.p > 0:
            return f"it drops attention or results with probability {part.p}"
    return hooked([module.qkv])


def _pooled_maps(x_all: Sequence[Any]) -> list[Tensor]:
    return [*x_all[0][1:], *x_all[1:]]


def _cannot_take(
    module: Any,
    x_all: Sequence[Any],
    mask_all: Any = None,
    batch_size: Any = None,
    num_clips: Any = None,
) -> str | None:
    masks = [] if mask_all is None else [*(mask_all[0] or []), *mask_all[1:]]
    if any(mask is not None for mask in masks):
        return "masks of its own were passed"
    geometry = _geometry(module)
    if len(x_all) != len(geometry.pooled) or len(x_all[0]) != 2:
        return "it takes a target, pooled, and one map for each reference"
    height, width = x_all[0][0].shape[1:3]
    if height % geometry.window or width % geometry.window:
        return "the map does not consist of whole windows"
    cells = geometry.pooled_cells((height // geometry.window, width // geometry.window))
    if [tuple(maps.shape[1:3]) for maps in _pooled_maps(x_all)] != cells:
        return "the pooled maps do not have the cells that belong to the windows"
    return None


def _run(
    original: Any,
    module: Any,
    x_all: Sequence[Any],
    mask_all: Any = None,
    batch_size: Any = None,
    num_clips: Any = None,
) -> Tensor:
    geometry = _geometry(module)
    side = geometry.window
    target, device = x_all[0][0], x_all[0][0].device
    # By index: torch.compile cannot unpack a list of parameters.
    clips = getattr(module, _CLIPS)
    tables = [getattr(module, f"{_TABLE}_to_windows")[0]]
    tables += [clips[position] for position in range(len(clips))]
    bias = assemble_bias(
        getattr(module, _TABLE),
        relative_position_index(side, side, device),
        getattr(module, f"{_TABLE}_to_neighbors"),
        [
            (table, relative_position_index(side, level.kernel, device))
            for table, level in zip(tables, geometry.pooled, strict=True)
        ],
    )
    attended = module.proj(
        attend_maps(target, _pooled_maps(x_all), module.qkv, bias, module.num_heads, geometry)
    )
    rows = attended.unflatten(1, (-1, side)).unflatten(3, (-1, side))  # (B, h, s, w, s, C)
    return rows.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _example(module: Any) -> tuple[Any, ...]:
    geometry = _geometry(module)
    dim, side = module.qkv.in_features, geometry.window
    target = torch.randn(1, 2 * side, 3 * side, dim)
    pooled = [torch.randn(1, *cells, dim) for cells in geometry.pooled_cells((2, 3))]
    x_all = [[target, pooled[0]], *pooled[1:]]
    return x_all, [[None, None], *([None] * (len(pooled) - 1))], 1, len(pooled)


WINDOW_ATTENTION = Kind(
    name="CFFM's window attention",
    operator="focal_attention",
    what="window attention of CFFM",
    looks_like=_looks_like,
    why_not=_why_not,
    run=_run,
    cannot_take=_cannot_take,
    example=_example,
)
