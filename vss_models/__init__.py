"""Published models for video semantic segmentation on the operators of `vss_kernels`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vss_kernels import __version__
    from vss_models.heads.segformer import ClipLogits
    from vss_models.losses import ClipLoss
    from vss_models.model import VideoSegmentor
    from vss_models.registry import MODEL_NAMES, create_model

# Imported when they are asked for: the command line answers, and names a package that is missing,
# before PyTorch is loaded.
_MODULES = {
    "MODEL_NAMES": "vss_models.registry",
    "ClipLogits": "vss_models.heads.segformer",
    "ClipLoss": "vss_models.losses",
    "VideoSegmentor": "vss_models.model",
    "__version__": "vss_kernels",
    "create_model": "vss_models.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


__all__ = [
    "MODEL_NAMES",
    "ClipLogits",
    "ClipLoss",
    "VideoSegmentor",
    "__version__",
    "create_model",
]
