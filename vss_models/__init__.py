"""Published models for video semantic segmentation on the operators of `vss_kernels`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vss_kernels import __version__
    from vss_models.checkpoints import (
        CheckpointError,
        load_model,
        load_released,
        open_model,
        save_model,
    )
    from vss_models.heads.segformer import ClipLogits
    from vss_models.inference import StreamingSegmenter
    from vss_models.losses import ClipLoss
    from vss_models.model import TrainedOn, VideoSegmentor
    from vss_models.registry import MODEL_NAMES, create_model

# Imported when they are asked for: the command line answers, and names a package that is missing,
# before PyTorch is loaded.
_MODULES = {
    "MODEL_NAMES": "vss_models.registry",
    "CheckpointError": "vss_models.checkpoints",
    "ClipLogits": "vss_models.heads.segformer",
    "ClipLoss": "vss_models.losses",
    "StreamingSegmenter": "vss_models.inference",
    "TrainedOn": "vss_models.model",
    "VideoSegmentor": "vss_models.model",
    "__version__": "vss_kernels",
    "create_model": "vss_models.registry",
    "load_model": "vss_models.checkpoints",
    "load_released": "vss_models.checkpoints",
    "open_model": "vss_models.checkpoints",
    "save_model": "vss_models.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


__all__ = [
    "MODEL_NAMES",
    "CheckpointError",
    "ClipLogits",
    "ClipLoss",
    "StreamingSegmenter",
    "TrainedOn",
    "VideoSegmentor",
    "__version__",
    "create_model",
    "load_model",
    "load_released",
    "open_model",
    "save_model",
]
