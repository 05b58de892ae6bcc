"""The settings a checkpoint was trained with, beside those of an evaluation."""

from __future__ import annotations

import reprlib

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from vss_models.model import TrainedOn

_PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16"}
"""Lightning's names of precisions, and what the network computes in."""

_OPTIONS = {
    "class_names": "classes.txt of data.root",
    "reference_offsets": "data.offsets",
    "frame_scale": "data.evaluation_transform.scale",
    "precision": "trainer.precision",
}
"""Entries of `TrainedOn` that change the figures of an evaluation, and where each is set."""


def network_precision(precision: str) -> str | None:
    """Returns what a network computes in, by Lightning's name of the trainer's precision.

    Args:
        precision: Such as "32-true" or "bf16-mixed".

    Returns:
        "float32" or "bfloat16"; None for a precision that inference does not offer.
    """
    return _PRECISIONS.get(precision)


def trainer_precision(precision: str) -> str:
    """Returns Lightning's name of the precision of a network's numbers, weights in float32."""
    return {"float32": "32-true", "bfloat16": "bf16-mixed"}[precision]


def warn_of_other_settings(trained: TrainedOn, used: TrainedOn) -> None:
    """Warns of every setting of an evaluation that differs from the training's, with both values.

    Args:
        trained: What the checkpoint says; entries it does not know are not compared.
        used: What the model is evaluated with.
    """
    for name, option in _OPTIONS.items():
        before, now = getattr(trained, name), getattr(used, name)
        if before is not None and before != now:
            rank_zero_warn(
                f"the model was trained with {name} {_short(before)}, this evaluation has "
                f"{_short(now)} ({option}): the figures are not those of the training",
                stacklevel=2,
            )


def _short(value: object) -> str:
    """Writes a value; frames that keep their size have an empty scale."""
    return reprlib.repr(value) if value != () else "() (none)"


__all__ = ["network_precision", "trainer_precision", "warn_of_other_settings"]
