"""A tiny data set, model and run, shared by the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vss_models.backbones import MixTransformer
from vss_models.data import EvaluationTransform, TrainTransform
from vss_models.data.synthetic import make_synthetic_dataset
from vss_models.training import (
    OptimizerSettings,
    RunCheckpoints,
    SegmentationModule,
    VideoDataModule,
    fit,
)

NUM_CLASSES = 9
OVERRIDES = {
    "dims": [8, 16, 32, 64],
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "embed_dim": 16,
}


def make_dataset(root: Path) -> Path:
    """Five videos of 18 frames, just long enough for every definition of video consistency."""
    return make_synthetic_dataset(root, num_train=3, num_val=2, frames=18, size=(64, 96), seed=1)


def make_data(root: Path | None, **settings: Any) -> VideoDataModule:
    defaults: dict[str, Any] = {
        "num_classes": NUM_CLASSES,
        "offsets": [-3, -2, -1],
        "train_transform": TrainTransform(scale=(96, 96), crop=(96, 96)),
        "evaluation_transform": EvaluationTransform(scale=(96, 96)),
        "batch_size": 2,
        "num_workers": 0,
    }
    return VideoDataModule(root, **{**defaults, **settings})


def make_module(name: str = "mrcfa_b0", **settings: Any) -> SegmentationModule:
    optimizer = OptimizerSettings(lr=1e-3, head_lr_multiplier=1.0, warmup_steps=2)
    defaults: dict[str, Any] = {
        "num_classes": NUM_CLASSES,
        "overrides": OVERRIDES,
        "optimizer": optimizer,
    }
    return SegmentationModule(name, **{**defaults, **settings})


def run(
    module: SegmentationModule, data: VideoDataModule, output: Path, max_steps: int, **options: Any
) -> Path:
    """Trains quietly on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "checkpoints": RunCheckpoints(every_n_steps=0),
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return fit(module, data, output, max_steps, **{**defaults, **options})


def without_dropout(module: SegmentationModule) -> SegmentationModule:
    """Makes a training step a function of its batch: compiled code draws other random numbers."""
    for part in module.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
        elif isinstance(part, MixTransformer):
            part.set_drop_path(0.0)
    return module


def assert_same_state(first: Path, second: Path) -> None:
    """Two checkpoints of runs have the same step, weights and moments, bit for bit."""
    a = torch.load(first, weights_only=True)
    b = torch.load(second, weights_only=True)
    assert a["global_step"] == b["global_step"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    moments = [state["optimizer_states"][0]["state"] for state in (a, b)]
    for number, entry in moments[0].items():
        for key, value in entry.items():
            assert torch.equal(value, moments[1][number][key]), (number, key)
