"""The small models of the golden files, and their inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.golden_io import Golden
from vss_models import VideoSegmentor, create_model
from vss_models.checkpoints import load_released


def build(golden: Golden, folder: Path, **overrides: Any) -> VideoSegmentor:
    """Returns the small model of a golden file, with its weights through the released names.

    Args:
        golden: What the file holds.
        folder: Takes the released checkpoint that the weights are read from.
        overrides: Further settings of the model.
    """
    settings = golden.metadata
    encoder = json.loads(settings["mit"])
    model = create_model(
        f"{settings['model']}_{settings['variant']}",
        num_classes=int(settings["num_classes"]),
        dims=encoder["embed_dims"],
        depths=encoder["depths"],
        embed_dim=int(settings["embed_dim"]),
        drop_path=0.0,
        dropout=0.0,
        **overrides,
    )
    torch.save({"state_dict": golden.group("state")}, folder / "released.pth")
    assert load_released(model, folder / "released.pth", verbose=False).complete
    return model


def clip_and_labels(golden: Golden) -> tuple[Tensor, Tensor]:
    """Returns the clip (B, T, 3, H, W) and its labels (B, T, H, W)."""
    return golden.tensors["input.clip"], golden.tensors["input.label"].squeeze(2)
