"""What a file of weights holds: its kind, its tensors and what it says about its model."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vss_models.checkpoints.io import read_file
from vss_models.checkpoints.report import CheckpointError
from vss_models.model import TrainedOn
from vss_models.registry import MODEL_NAMES

FORMAT = "vss_models"
FORMAT_VERSION = 1

RUN_KEY = "vss_model"
"""Where a training run's checkpoint says what its model was built with."""

MODEL = "model"
RUN = "run"
PUBLISHED = "published"

PUBLISHED_CLASSIFIER = "decode_head.linear_pred.weight"
"""What every released file has: the weight of the per-frame classifier."""

_RUN_PREFIX = "model."
_LARGEST_NUMBER = 65_536
_LONGEST_WORD = 500
_DEEPEST_NESTING = 4


class Checkpoint(NamedTuple):
    """Contents of a file of weights.

    Attributes:
        kind: `MODEL` (a file of `save_model`), `RUN` (a checkpoint of a training run) or
            `PUBLISHED` (named tensors alone, in any other layout).
        state: The tensors by name. Of a model and of a run, those are the names in the model's
            state dict.
        description: What the file says about its model: `name`, `num_classes`, `overrides` and the
            entries of `TrainedOn`. Empty for published tensors.
    """

    kind: str
    state: dict[str, Tensor]
    description: dict[str, Any]

    @property
    def trained_on(self) -> TrainedOn:
        """What the file says about the data of its model.

        Raises:
            ValueError: If an entry is of another form than described there.
        """
        return TrainedOn.read(self.description)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None if the file tells nothing of it."""
        if self.kind != PUBLISHED:
            return int(self.description["num_classes"])
        classifier = self.state.get(PUBLISHED_CLASSIFIER)
        return None if classifier is None or classifier.dim() == 0 else classifier.shape[0]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads any file of weights this package knows.

    Args:
        path: A file of `save_model`, a checkpoint of a training run, or named tensors: the plain
            dict or `{"state_dict": {...}}`, .pth or .safetensors.

    Returns:
        Kind, tensors and description. The description of a model or a run is safe to build: its
        entries are of plain types, and no number in it asks for more parts than there are tensors.

    Raises:
        CheckpointError: If the file cannot be read, is damaged or of a newer format, holds no named
            tensors; or if it is of this package and describes no model of it or has weights that
            are not finite.
        FileNotFoundError: If there is no such file.
    """
    return checkpoint_of(path, read_file(path))


def checkpoint_of(path: str | os.PathLike[str], content: Any) -> Checkpoint:
    """Does what `read_checkpoint` does with the contents of a file that has been read."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    if RUN_KEY in content:
        kind, description = RUN, content[RUN_KEY]
    elif content.get("format") == FORMAT:
        kind, description = MODEL, {k: v for k, v in content.items() if k != "state_dict"}
    else:
        return Checkpoint(PUBLISHED, _published_state(path, content), {})
    if kind == MODEL:
        _check_version(path, description.get("format_version"))
    state = _own_state(path, content.get("state_dict"), prefix=_RUN_PREFIX if kind == RUN else "")
    _check_description(path, description, len(state))
    check_finite(path, state)
    return Checkpoint(kind, state, dict(description))


def check_finite(source: object, tensors: Mapping[str, Tensor]) -> None:
    """Raises unless all numbers are finite.

    Args:
        source: What the message says the tensors are from.
        tensors: Tensors by name.

    Raises:
        CheckpointError: If a tensor holds NaN or an infinity; the message names the first one.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # 8-bit floats have no test of their own.
        wide = tensor.float() if tensor.element_size() == 1 else tensor
        count = int((~torch.isfinite(wide)).sum())
        if count:
            raise CheckpointError(
                f"{source}: {count} of the {tensor.numel()} numbers of {name} are NaN or infinite; "
                "the file is damaged, or of a training that diverged: use an earlier checkpoint"
            )


def _published_state(path: object, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(sorted(str(key) for key in content)[:8]) or "none"
        raise CheckpointError(f"{path} holds no named tensors; its keys are: {keys}")
    return state


def _own_state(path: object, state: Any, prefix: str) -> dict[str, Tensor]:
    is_state = isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for key, value in state.items()
    )
    if not is_state:
        raise CheckpointError(f"{path} does not describe a model: it has no tensors by name")
    for key, tensor in state.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} is no file of this program: {key} overlaps itself")
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _check_version(path: object, version: Any) -> None:
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}; "
            "use a newer vss-kernels"
        )


def _check_description(path: object, description: Any, num_tensors: int) -> None:
    """Raises unless a model can be built from a description in reasonable time."""
    if not isinstance(description, Mapping):
        raise CheckpointError(f"{path} does not describe a model: it has no settings")
    name, num_classes = description.get("name"), description.get("num_classes")
    if name not in MODEL_NAMES:
        raise CheckpointError(
            f"{path} does not describe a model of this program: its name is {reprlib.repr(name)}"
        )
    if type(num_classes) is not int or not 1 <= num_classes <= _LARGEST_NUMBER:
        raise CheckpointError(
            f"{path} does not describe a model: it has {reprlib.repr(num_classes)} classes"
        )
    overrides = description.get("overrides")
    if not isinstance(overrides, Mapping):
        raise CheckpointError(f"{path} does not describe a model: it has no overrides")
    for key, value in overrides.items():
        _check_setting(f"{path}: {key}", value, _limit(key, num_tensors))


def _limit(key: Any, num_tensors: int) -> int:
    # Every layer, head and reference has tensors of its own; a width has only one.
    return _LARGEST_NUMBER if key in ("dims", "embed_dim") else max(num_tensors, 64)


def _check_setting(where: str, value: Any, limit: int, nesting: int = 0) -> None:
    """Raises unless a setting is made of plain values of usual sizes."""
    if isinstance(value, list | tuple | Mapping):
        if nesting == _DEEPEST_NESTING or len(value) > limit:
            raise CheckpointError(f"{where} is nested too deeply or too long for a setting")
        if not isinstance(value, Mapping):
            for entry in value:
                _check_setting(where, entry, limit, nesting + 1)
            return
        for key, entry in value.items():
            # Of another package's encoder: sizes of pictures and windows, and depths.
            within = limit if "depth" in str(key) else _LARGEST_NUMBER
            _check_setting(f"{where}.{key}", entry, within, nesting + 1)
        return
    is_number = isinstance(value, int | float) and math.isfinite(value) and abs(value) <= limit
    is_word = isinstance(value, str) and len(value) <= _LONGEST_WORD
    if not (value is None or isinstance(value, bool) or is_number or is_word):
        raise CheckpointError(
            f"{where} must be a number up to {limit}, a truth value or a word, got "
            f"{reprlib.repr(value)}"
        )


__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MODEL",
    "PUBLISHED",
    "PUBLISHED_CLASSIFIER",
    "RUN",
    "RUN_KEY",
    "Checkpoint",
    "check_finite",
    "checkpoint_of",
    "read_checkpoint",
]
