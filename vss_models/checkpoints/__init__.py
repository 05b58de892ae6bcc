"""Weights in and out: released, Hugging Face and segmentation_models_pytorch files, and our own."""

from vss_models.checkpoints.native import (
    describe_model,
    load_model,
    save_model,
)
from vss_models.checkpoints.open import open_model
from vss_models.checkpoints.pretrained import load_pretrained
from vss_models.checkpoints.published import (
    load_backbone,
    load_released,
    save_released,
    to_released,
)
from vss_models.checkpoints.read import RUN_KEY, Checkpoint, read_checkpoint
from vss_models.checkpoints.report import CheckpointError, LoadReport, ShapeMismatch

__all__ = [
    "RUN_KEY",
    "Checkpoint",
    "CheckpointError",
    "LoadReport",
    "ShapeMismatch",
    "describe_model",
    "load_backbone",
    "load_model",
    "load_pretrained",
    "load_released",
    "open_model",
    "read_checkpoint",
    "save_model",
    "save_released",
    "to_released",
]
