"""The ``vss`` command: configurations by name, overrides and what it says about wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vss_models.cli import main
from vss_models.training.checkpoint_defaults import count_classes
from vss_models.training.configs import config_files, config_names, expand_config_arguments

FAMILIES = ("mrcfa", "cffm", "segformer")
VSPW_NAMES = [f"{family}_{size}_vspw" for family in FAMILIES for size in ("b0", "b1", "b2", "b5")]
SYNTHETIC_NAMES = [f"{family}_synthetic" for family in FAMILIES]


def print_config(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as end:
        main(["fit", *options, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_promised_configuration_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_names() == sorted([*VSPW_NAMES, *SYNTHETIC_NAMES, "finetune"])
    assert main(["configs"]) == 0
    assert capsys.readouterr().out.split() == config_names()


@pytest.mark.parametrize("name", VSPW_NAMES)
def test_vspw_configurations_hold_the_published_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = print_config(capsys, "--config", name)
    model = name.removesuffix("_vspw")
    assert config["model"]["name"] == model
    assert config["output"] == f"runs/{name}"
    assert config["model"]["optimizer"] == {
        "lr": 6e-5,
        "head_lr_multiplier": 10.0,
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "warmup_steps": 1500,
        "warmup_ratio": 1e-6,
        "power": 1.0,
    }
    data = config["data"]
    assert data["num_classes"] is None
    assert count_classes(tmp_path, data["label_mapping"], None) == 124
    assert data["offsets"] == ([] if model.startswith("segformer") else [-9, -6, -3])
    assert data["batch_size"] == 2
    assert data["train_transform"] == {
        "scale": [853, 480],
        "ratio_range": [0.5, 2.0],
        "crop": [480, 480],
        "max_class_fraction": 0.75,
        "tries": 11,
        "flip": 0.5,
        "photometric": {
            "brightness": 32.0,
            "contrast": [0.5, 1.5],
            "saturation": [0.5, 1.5],
            "hue": 36,
            "probability": 0.5,
        },
    }
    assert data["evaluation_transform"] == {"scale": [853, 480], "divisor": 32}
    trainer = config["trainer"]
    assert (trainer["max_steps"], trainer["precision"]) == (160_000, "32-true")
    assert trainer["sync_batchnorm"] is True
    assert config["checkpoints"]["every_n_steps"] == 4000


@pytest.mark.parametrize("name", SYNTHETIC_NAMES)
def test_synthetic_configurations(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = print_config(capsys, f"--config={name}")
    assert config["model"]["name"] == f"{name.split('_')[0]}_b0"
    assert config["data"]["num_classes"] is None
    assert config["trainer"]["accelerator"] == "cpu"


def test_the_command_line_overrides_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    config = print_config(
        capsys,
        "-c",
        "mrcfa_b1_vspw",
        "--model.optimizer.lr=1e-4",
        "--model.overrides.embed_dim=128",
        "--data.offsets=[-3,-2,-1]",
        "--data.train_transform.crop=[96,160]",
        "--trainer.accumulate_grad_batches=4",
        "--trainer.precision=bf16-mixed",
    )
    assert config["model"]["optimizer"]["lr"] == 1e-4
    assert config["model"]["optimizer"]["warmup_steps"] == 1500
    assert config["model"]["overrides"] == {"embed_dim": 128}
    assert config["data"]["offsets"] == [-3, -2, -1]
    assert config["data"]["train_transform"]["crop"] == [96, 160]
    assert config["trainer"]["accumulate_grad_batches"] == 4
    assert config["trainer"]["precision"] == "bf16-mixed"


def test_a_file_can_follow_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("data:\n  num_classes: 11\n  offsets: [-3, -2, -1]\n")
    config = print_config(capsys, "--config", "cffm_b0_vspw", "--config", str(mine))
    assert config["model"]["name"] == "cffm_b0"
    assert config["data"]["num_classes"] == 11
    assert config["trainer"]["max_steps"] == 160_000


def test_names_are_read_as_recipe_and_model_in_place() -> None:
    recipe, model = config_files("mrcfa_b5_vspw")
    assert (recipe.name, model.name) == ("vspw.yaml", "mrcfa_b5_vspw.yaml")
    assert expand_config_arguments(["fit", "--seed", "1", "--config=mrcfa_b5_vspw", "--x=y"]) == [
        "fit",
        "--seed",
        "1",
        "--config",
        str(recipe),
        "--config",
        str(model),
        "--x=y",
    ]


@pytest.mark.parametrize("options", [["--config", "mrcfa_b9_vspw"], ["--config"], ["-c="]])
def test_an_unknown_configuration_lists_the_names(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *options])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in config_names())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "mrcfa_b1_vspw"], "data.root is not set"),
        (["--config", "mrcfa_b1_vspw", "--model.optimizer.lr=fast"], "model.optimizer.lr"),
        (["--config", "mrcfa_b1_vspw", "--model.colour=red"], "model.colour"),
        (["--config", "mrcfa_b1_vspw", "--seed=null"], "seed"),
    ],
)
def test_wrong_options_are_usage_errors(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *options])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("vss fit: ")
    assert message in error
    assert len(error.splitlines()) < 10


@pytest.mark.parametrize("command", ["test", "validate"])
def test_an_untrained_model_is_evaluated_only_on_request(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", "segformer_synthetic", "--data.root", str(tmp_path / "nowhere")]
    options += ["--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main([command, *options])
    assert end.value.code == 2
    assert "--checkpoint is missing" in capsys.readouterr().err
    # With the request, or with weights, the data are looked for.
    assert main([command, *options, "--random_weights=true"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_there_is_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "--seed_everything" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "segformer_synthetic", "--seed_everything", "3"])
    assert end.value.code == 2


def test_a_missing_data_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "segformer_synthetic", "--data.root", str(tmp_path / "nowhere")]
    assert main(["fit", *options, "--output", str(tmp_path / "run")]) == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "vss fit --config mrcfa_b1_vspw" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["train"]) == 2
    assert "unknown command 'train'" in capsys.readouterr().err


def test_synthesize_makes_a_data_set_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    options = ["--num-train", "1", "--num-val", "1", "--frames", "2", "--size", "96", "64"]
    assert main(["synthesize", str(folder), *options]) == 0
    assert (folder / "train.txt").read_text().split() == ["train_0000"]
    with Image.open(folder / "data" / "train_0000" / "origin" / "00000000.jpg") as frame:
        assert frame.size == (96, 64)
    assert main(["synthesize", str(folder), *options]) == 1
    assert "not empty" in capsys.readouterr().err
