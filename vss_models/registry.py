"""The models by name: `create_model("mrcfa_b1", num_classes=124)`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vss_kernels.nn import AggregationLayers
from vss_models.backbones import MixTransformer, TimmBackbone
from vss_models.heads import CFFMHead, MRCFAHead, SegFormerHead
from vss_models.model import ModelConfig, VideoSegmentor

SIZES = ("b0", "b1", "b2", "b3", "b4", "b5")

_LARGE_DIMS = (64, 128, 320, 512)
_MIT_COMMON = {
    "num_heads": (1, 2, 5, 8),
    "reductions": (8, 4, 2, 1),
    "mlp_ratio": 4.0,
    "drop_path": 0.1,
}
MIT_SETTINGS: dict[str, dict[str, Any]] = {
    "b0": {"dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2), **_MIT_COMMON},
    "b1": {"dims": _LARGE_DIMS, "depths": (2, 2, 2, 2), **_MIT_COMMON},
    "b2": {"dims": _LARGE_DIMS, "depths": (3, 4, 6, 3), **_MIT_COMMON},
    "b3": {"dims": _LARGE_DIMS, "depths": (3, 4, 18, 3), **_MIT_COMMON},
    "b4": {"dims": _LARGE_DIMS, "depths": (3, 8, 27, 3), **_MIT_COMMON},
    "b5": {"dims": _LARGE_DIMS, "depths": (3, 6, 40, 3), **_MIT_COMMON},
}
"""Encoder settings of each size; every one can be overridden."""

_HEAD_COMMON = {"embed_dim": 256, "dropout": 0.1, "fusion": "projected"}
_ONE_LAYER = AggregationLayers(
    coarse=((3, 1, 1),),
    middle=((5, 1, 1),),
    fine=((5, 1, 1),),
    coarse_to_middle=((3, 1, 1),),
    middle_to_fine=((3, 1, 1),),
)
_TWO_LAYERS = AggregationLayers(
    coarse=((3, 1, 1), (3, 1, 2)),
    middle=((3, 1, 1), (3, 1, 2)),
    fine=((5, 1, 1), (3, 1, 2)),
    coarse_to_middle=((3, 2, 2), (3, 2, 2)),
    middle_to_fine=((3, 2, 2), (3, 2, 1)),
)
_MRCFA_SETTINGS: dict[str, dict[str, Any]] = {
    size: {
        "aggregation_layers": _TWO_LAYERS if size == "b1" else _ONE_LAYER,
        "keep": 0.8 if size == "b0" else 0.5,
        "num_references": 3,
    }
    for size in SIZES
}
_CFFM_COMMON = {"reference_levels": (1, 2, 3), "reference_kernels": (7, 5, 3), "focal_heads": 8}
_CFFM_BLOCKS = {"b0": 1, "b1": 2, "b2": 2, "b3": 2, "b4": 2, "b5": 4}
HEAD_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mrcfa": {size: {**_HEAD_COMMON, **_MRCFA_SETTINGS[size]} for size in SIZES},
    "cffm": {
        size: {**_HEAD_COMMON, **_CFFM_COMMON, "focal_blocks": _CFFM_BLOCKS[size]} for size in SIZES
    },
    "segformer": {size: dict(_HEAD_COMMON) for size in SIZES},
}
"""Head settings of each family and size; every one can be overridden."""

_HEADS: dict[str, type[SegFormerHead]] = {
    "mrcfa": MRCFAHead,
    "cffm": CFFMHead,
    "segformer": SegFormerHead,
}

MODEL_NAMES = tuple(f"{family}_{size}" for family in _HEADS for size in SIZES)


def create_model(name: str, num_classes: int, **overrides: Any) -> VideoSegmentor:
    """Builds a model with fresh weights.

    Args:
        name: "mrcfa_b0" .. "mrcfa_b5", "cffm_b0" .. "cffm_b5" or "segformer_b0" .. "segformer_b5".
        num_classes: Number of classes K.
        **overrides: Settings that shall differ from the name's own. Encoder: `dims`, `depths`,
            `num_heads`, `reductions`, `mlp_ratio`, `drop_path`. Every head: `embed_dim`, `dropout`,
            `fusion`. MRCFA: `aggregation_layers`, `keep` (the fraction of
            reference tokens kept), `num_references`. CFFM: `reference_levels`,
            `reference_kernels` (one entry per reference, oldest first), `focal_blocks`,
            `focal_heads`. Another encoder: `backbone` names a timm model with four feature levels,
            which is built with the dict `backbone_options`.

    Returns:
        The model, in training mode, on the default device.

    Raises:
        TypeError: If an override is not a setting of this model.
        ValueError: If the name or a value is not valid.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"name must be one of {', '.join(MODEL_NAMES)}; got {name!r}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    family, size = name.split("_")
    encoder_settings = dict(MIT_SETTINGS[size])
    head_settings = dict(HEAD_SETTINGS[family][size])
    allowed = {*encoder_settings, *head_settings, "backbone", "backbone_options"}
    unknown = sorted(set(overrides) - allowed)
    if unknown:
        raise TypeError(
            f"{name} has no settings {', '.join(unknown)}; its settings are "
            f"{', '.join(sorted(allowed))}"
        )
    for key, default in {**encoder_settings, **head_settings}.items():
        if key in overrides:
            _check_kind(key, overrides[key], default)
    head_settings.update({k: v for k, v in overrides.items() if k in head_settings})
    backbone = _create_backbone(encoder_settings, overrides)
    head = _HEADS[family](backbone.channels, num_classes, **head_settings)
    config = ModelConfig(name, num_classes, {k: _plain(v) for k, v in overrides.items()})
    return VideoSegmentor(backbone, head, config)


_LARGEST = 2**31 - 1
"""PyTorch cannot count further than this in every place where a setting is used."""


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Checks that a setting is of the kind of its default; the parts check what it says.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(default, tuple) and not isinstance(default, AggregationLayers):
        expected = "a list of whole numbers"
        valid = _is_sequence(value) and all(map(_is_whole, value))
    elif isinstance(default, str):
        expected, valid = "a word", isinstance(value, str)
    elif isinstance(default, int):
        expected, valid = "a whole number", _is_whole(value)
    elif isinstance(default, float):
        expected = "a number"
        valid = _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
    else:
        return
    if not valid:
        raise ValueError(f"{key} must be {expected}, such as {_plain(default)!r}, got {value!r}")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _create_backbone(
    settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> MixTransformer | TimmBackbone:
    changed = {key: value for key, value in overrides.items() if key in settings}
    name = overrides.get("backbone")
    if name is None:
        if overrides.get("backbone_options"):
            raise ValueError("backbone_options needs backbone, the name of a timm model")
        return MixTransformer(**{**settings, **changed})
    if changed:
        raise ValueError(
            f"{', '.join(sorted(changed))} are settings of the MiT encoder and mean nothing with "
            f"backbone={name!r}; use backbone_options"
        )
    return TimmBackbone(name, overrides.get("backbone_options"))


def _plain(value: Any) -> Any:
    """Turns sequences and mappings into lists and dicts, so that a checkpoint holds plain types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if _is_sequence(value):
        return [_plain(entry) for entry in value]
    return value


__all__ = ["HEAD_SETTINGS", "MIT_SETTINGS", "MODEL_NAMES", "create_model"]
