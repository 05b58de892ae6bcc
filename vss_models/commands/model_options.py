"""The options by which commands choose a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vss_models.checkpoints import open_model
from vss_models.model import VideoSegmentor
from vss_models.registry import MODEL_NAMES, create_model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint`, `--model`, `--random-weights` and `--num-classes`."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="trained weights: last.pt or last.ckpt of a training run, or a released file, which "
        "needs --model too",
    )
    add(
        "--model",
        choices=MODEL_NAMES,
        metavar="NAME",
        help="such as mrcfa_b1: the model of a released file; a check for other files",
    )
    add("--random-weights", action="store_true", help="run --model untrained, to try the program")
    add("--num-classes", type=int, metavar="K", help="classes for --random-weights (default: 124)")


def chosen_model(parser: argparse.ArgumentParser, options: argparse.Namespace) -> VideoSegmentor:
    """Opens the model that the options name, in evaluation mode.

    Raises:
        SystemExit: If the options don't fit together.
        CheckpointError: If the file is not what it should be.
        FileNotFoundError: If there is none.
        ValueError: If the number of classes is not positive.
    """
    if options.random_weights:
        if options.checkpoint is not None or options.model is None:
            parser.error("--random-weights needs --model and goes without --checkpoint")
        torch.manual_seed(0)
        num_classes = 124 if options.num_classes is None else options.num_classes
        return create_model(options.model, num_classes).eval()
    if options.checkpoint is None:
        parser.error(
            "--checkpoint is missing: a model without trained weights labels at random "
            "(add --random-weights to try just that)"
        )
    if options.num_classes is not None:
        parser.error("--num-classes is for --random-weights; a checkpoint knows its classes")
    return open_model(options.checkpoint, options.model)


__all__ = ["add_model_options", "chosen_model"]
