"""Settings of the training loss: what makes no sense is refused before a training starts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support.tiny_training import NUM_CLASSES, make_module


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": [-1.0] * NUM_CLASSES}, "class_weights must be numbers of at least 0"),
        ({"class_weights": [0.0] * NUM_CLASSES}, "not all of them 0"),
        ({"class_weights": [math.nan] * NUM_CLASSES}, "class_weights must be"),
        ({"class_weights": [1.0] * (NUM_CLASSES - 1) + [math.inf]}, "class_weights must be"),
        ({"auxiliary_weight": -1.0}, r"auxiliary_weight must be .* at least 0, got -1\.0"),
        ({"auxiliary_weight": math.nan}, "auxiliary_weight must be"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in 0\.\.1, got 1\.5"),
    ],
)
def test_loss_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**settings)


def test_some_classes_may_weigh_nothing() -> None:
    module = make_module(class_weights=[0.0] + [1.0] * (NUM_CLASSES - 1), auxiliary_weight=0.0)
    assert module.loss.class_weights[0] == 0
