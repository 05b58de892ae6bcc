"""Settings of a run without a value, or of a wrong kind, are named before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vss_models.cli import main


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"data": {"offsets": None}}, 2, "data.offsets must not be null; leave it out"),
        ({"overlays": {"every_n_steps": None}}, 2, "overlays.every_n_steps must not be null"),
        ({"data": {"train_transform": {"crop": None}}}, 2, "data.train_transform.crop must not"),
        ({"checkpoints": []}, 2, "FILE: checkpoints must hold settings, NAME: VALUE, got []"),
        ({"model": -1}, 2, "FILE: model must hold settings, NAME: VALUE, got -1"),
        ({"model": "\0"}, 2, "FILE: model must not hold a null character"),
        ({"model": {"optimizer": "\0"}}, 2, "FILE: model.optimizer must not hold a null"),
        ({"trainer": [1]}, 2, "FILE: trainer must hold settings, NAME: VALUE, got [1]"),
        ({"seed": 10**30}, 2, "seed must be from 0 to 9223372036854775807, got 1000"),
        ({"seed": -1}, 2, "seed must be from 0 to 9223372036854775807, got -1"),
        ({"model": {"overrides": {"embed_dim": "wide"}}}, 1, "embed_dim must be a whole number"),
        ({"data": {"train_transform": {"crop": [63, 96]}}}, 1, "data.train_transform.crop must be"),
        ({"trainer": {"val_check_interval": {"a": 1}}}, 1, "a setting of the trainer is not valid"),
    ],
)
def test_a_wrong_setting_is_named(
    settings: dict[str, Any],
    status: int,
    message: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(settings))
    output = tmp_path / "run"
    arguments = ["--config", "mrcfa_synthetic", "--config", str(path)]
    arguments += ["--data.root", str(root), "--output", str(output)]
    if status == 2:
        with pytest.raises(SystemExit) as end:
            main(["fit", *arguments])
        assert end.value.code == 2
    else:
        assert main(["fit", *arguments]) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vss ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"vss fit: {message.replace('FILE', str(path))}")
    assert not output.exists()


def test_settings_that_may_be_null_are_taken(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nulls.yaml"
    settings = {"data": {"num_classes": None, "train_transform": {"photometric": None}}}
    path.write_text(yaml.safe_dump({**settings, "model": {"class_weights": None}}))
    options = ["--config", "mrcfa_synthetic", "--config", str(path), "--data.root", str(root)]
    # It gets as far as the checkpoint to continue from.
    missing = str(tmp_path / "none.ckpt")
    assert main(["fit", *options, "--ckpt_path", missing]) == 1
    assert f"vss fit: {missing}: no such checkpoint" in capsys.readouterr().err


def test_a_missing_data_set_is_named_before_its_classes_are_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, checkpoint = tmp_path / "nowhere", tmp_path / "last.ckpt"
    checkpoint.touch()
    options = ["--config", "mrcfa_synthetic", "--data.root", str(nowhere)]
    assert main(["fit", *options, "--ckpt_path", str(checkpoint)]) == 1
    assert capsys.readouterr().err.startswith(f"vss fit: {nowhere / 'data'}: no such folder")
