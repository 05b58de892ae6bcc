"""What a checkpoint was trained with, as the defaults of its evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vss_models.checkpoints import Checkpoint
from vss_models.data import VSPW_CLASSES, choose_classes, read_classes
from vss_models.training.configs import FOLDER
from vss_models.training.trained_settings import trainer_precision


def with_checkpoint_defaults(arguments: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """Adds a checkpoint's own settings to a command line.

    They count more than a configuration that comes with the package, and less than options and
    files of the user's own. The model's name and settings count less than both.

    Args:
        arguments: The command and its options; named configurations spelled out as files.
        checkpoint: The checkpoint to evaluate.

    Returns:
        The arguments with the checkpoint's in between.
    """
    after_recipe = 1
    for position, argument in enumerate(arguments[:-1], start=1):
        if argument == "--config" and Path(arguments[position]).parent == FOLDER:
            after_recipe = position + 1
    return [
        arguments[0],
        *_model_options(checkpoint),
        *arguments[1:after_recipe],
        *_data_options(checkpoint),
        *arguments[after_recipe:],
    ]


def _model_options(checkpoint: Checkpoint) -> list[str]:
    description = checkpoint.description
    if not description:
        return []
    options = [f"--model.name={description['name']}"]
    if description["overrides"]:
        options.append(f"--model.overrides={json.dumps(description['overrides'])}")
    return options


def _data_options(checkpoint: Checkpoint) -> list[str]:
    trained = checkpoint.trained_on
    settings: dict[str, Any] = {}
    if checkpoint.num_classes is not None:
        settings["data.num_classes"] = checkpoint.num_classes
    # A per-frame model says nothing of offsets: it has no use for those of the configuration.
    if trained.reference_offsets:
        settings["data.offsets"] = trained.reference_offsets
    if trained.frame_scale is not None:
        settings["data.evaluation_transform.scale"] = trained.frame_scale or None
    if trained.precision is not None:
        settings["trainer.precision"] = trainer_precision(trained.precision)
    return [f"--{name}={_written(value)}" for name, value in settings.items()]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def count_classes(root: Any, label_mapping: Any, num_classes: int | None) -> int:
    """Returns how many classes the model of a run has; what is wrong is left to `check_classes`."""
    if num_classes is not None:
        return num_classes
    try:
        return len(choose_classes(Path(root), None, label_mapping))
    except (OSError, TypeError, ValueError):
        return len(VSPW_CLASSES)


def check_classes(
    root: Path, label_mapping: Any, num_classes: int | None, checkpoint: Checkpoint | None
) -> None:
    """Checks that the data have the classes of the checkpoint that is to be evaluated.

    Args:
        root: Folder of the data set.
        label_mapping: How its mask values become classes.
        num_classes: The setting ``data.num_classes``.
        checkpoint: The checkpoint; None to train, when other classes get fresh classifiers.

    Raises:
        ValueError: If the numbers differ, or the list of classes cannot be read.
    """
    trained = None if checkpoint is None else checkpoint.num_classes
    if trained is not None and num_classes is not None and num_classes != trained:
        raise ValueError(
            f"the checkpoint has {trained} classes, --data.num_classes is {num_classes}: leave the "
            "option out, or give a checkpoint of that many classes"
        )
    listed = root / "classes.txt"
    if trained is not None and listed.is_file():
        count = len(read_classes(listed, label_mapping))
        if count != trained:
            raise ValueError(
                f"the checkpoint has {trained} classes, {listed} names {count}: give a checkpoint "
                "of this data set (--checkpoint) or the data set it was trained on (--data.root)"
            )
    choose_classes(root, num_classes, label_mapping)


__all__ = ["check_classes", "count_classes", "with_checkpoint_defaults"]
