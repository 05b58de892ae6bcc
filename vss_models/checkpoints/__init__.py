"""Weights in and out: released, Hugging Face and segmentation_models_pytorch files, and our own."""

from vss_models.checkpoints.native import (
    build_model,
    describe_model,
    load_model,
    save_model,
)
from vss_models.checkpoints.open import RUN_KEY, open_model, state_of_run
from vss_models.checkpoints.pretrained import load_pretrained
from vss_models.checkpoints.published import (
    load_backbone,
    load_released,
    save_released,
    to_released,
)
from vss_models.checkpoints.report import CheckpointError, LoadReport, ShapeMismatch

__all__ = [
    "RUN_KEY",
    "CheckpointError",
    "LoadReport",
    "ShapeMismatch",
    "build_model",
    "describe_model",
    "load_backbone",
    "load_model",
    "load_pretrained",
    "load_released",
    "open_model",
    "save_model",
    "save_released",
    "state_of_run",
    "to_released",
]
