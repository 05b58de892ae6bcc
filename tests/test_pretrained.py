"""Training from trained weights: other classes, another head, an own file as the encoder's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_training import NUM_CLASSES, OVERRIDES, make_module
from vss_kernels.nn.resizing import resize
from vss_models import VideoSegmentor, create_model
from vss_models.checkpoints import (
    CheckpointError,
    describe_model,
    load_backbone,
    load_model,
    load_pretrained,
    save_model,
    save_released,
)
from vss_models.cli import main

OWN_CLASSES = 5


def fresh(
    name: str = "mrcfa_b0", num_classes: int = NUM_CLASSES, **overrides: Any
) -> VideoSegmentor:
    settings = {"embed_dim": 16} if "backbone" in overrides else OVERRIDES
    return create_model(name, num_classes, **{**settings, **overrides})


def trained(
    name: str = "mrcfa_b0", num_classes: int = NUM_CLASSES, **overrides: Any
) -> VideoSegmentor:
    """Returns a model none of whose weights could be fresh ones."""
    model = fresh(name, num_classes, **overrides)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_().add_(3.0)
    return model


def save_run(model: VideoSegmentor, path: Path) -> None:
    """Writes the model as a checkpoint of a training run."""
    module = make_module()
    module.model = model
    saved: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    torch.save(saved, path)


SAVE: dict[str, Callable[[VideoSegmentor, Path], None]] = {
    "model": save_model,
    "run": save_run,
    "released": save_released,
}


def copy_of_state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def loaded_keys(model: nn.Module, before: dict[str, Tensor], source: nn.Module) -> set[str]:
    """Keys that have the source's values; all others must be as before."""
    theirs, loaded = source.state_dict(), set()
    for key, value in model.state_dict().items():
        if torch.equal(value, before[key]):
            continue
        assert torch.equal(value, theirs[key]), key
        loaded.add(key)
    return loaded


def float_keys(model: nn.Module) -> set[str]:
    return {key for key, value in model.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize(
    ("name", "classifiers"),
    [
        ("mrcfa_b0", ["classifier", *(f"decoders.{i}" for i in range(4))]),
        ("cffm_b0", ["classifier", "target_classifier"]),
        ("segformer_b0", ["classifier"]),
    ],
)
def test_classifiers_of_other_classes_stay_fresh(
    name: str,
    classifiers: list[str],
    form: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, model = trained(name), fresh(name, OWN_CLASSES)
    SAVE[form](source, tmp_path / "weights.pt")
    before = copy_of_state(model)
    report = load_pretrained(model, tmp_path / "weights.pt")
    expected = {f"head.{part}.{kind}" for part in classifiers for kind in ("weight", "bias")}
    assert float_keys(model) - loaded_keys(model, before, source) == expected
    assert len(report.wrong_shape) == len(expected)
    assert not report.missing
    assert not report.unexpected
    said = capsys.readouterr().out
    assert f"{len(expected)} of the wrong shape" in said
    parts = dict.fromkeys(".".join(f"head.{part}".split(".")[:2]) for part in classifiers)
    assert f"with fresh weights: {', '.join(parts)}\n" in said


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("segformer_b0", "mrcfa_b0"),
        ("segformer_b0", "cffm_b0"),
        ("mrcfa_b0", "cffm_b0"),
        ("cffm_b0", "segformer_b0"),
    ],
)
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, OWN_CLASSES])
def test_another_head_takes_what_both_have(
    origin: str, name: str, num_classes: int, form: str, tmp_path: Path
) -> None:
    source, model = trained(origin), fresh(name, num_classes)
    SAVE[form](source, tmp_path / "weights.pt")
    before = copy_of_state(model)
    report = load_pretrained(model, tmp_path / "weights.pt", verbose=False)
    common = ("backbone.", "head.fusion.")
    if num_classes == NUM_CLASSES:
        common += ("head.classifier.",)
    expected = {key for key in float_keys(model) if key.startswith(common)}
    for key in set(before) - expected:
        if key.startswith(("head.value.", "head.decoders.", "head.target_classifier.")):
            before[key] = model.state_dict()[key]  # they are set, see the test below
    assert loaded_keys(model, before, source) == expected
    assert len(report.missing) == len(
        [key for key in model.state_dict() if key not in source.state_dict()]
    )


@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
def test_a_temporal_model_starts_with_its_per_frame_predictions(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(source := fresh("segformer_b0").eval(), tmp_path / "segformer.pt")
    load_pretrained(model := fresh(name).eval(), tmp_path / "segformer.pt", verbose=False)
    clip = torch.randn(2, 4, 3, 64, 96)
    with torch.no_grad():
        logits = model(clip)
        fused = source.head.fusion(source.backbone(clip[:, -1].contiguous()))
        per_frame = source.head.classifier(resize(fused, (8, 12)))
        expected = resize(per_frame, (16, 24))
        assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
        # What it takes from the references can be learned from there.
        model.train()
        target = model(clip).target
    assert target.std() > 0.01
    model(clip).target.square().mean().backward()
    learning = model.head.value if name == "mrcfa_b0" else model.head.target_classifier
    assert learning.weight.grad[:, -16:].abs().max() > 0


@pytest.mark.parametrize(
    ("source", "model", "named"),
    [
        # Another encoder, deeper or wider; another fusion; another number of blocks or references.
        (("mrcfa_b0", {"depths": [2, 1, 1, 1]}), ("mrcfa_b0", {}), "unexpected: backbone"),
        (("mrcfa_b0", {}), ("mrcfa_b0", {"depths": [2, 1, 1, 1]}), "missing: backbone"),
        (("mrcfa_b0", {"dims": [8, 16, 32, 128]}), ("mrcfa_b0", {}), "wrong shape: backbone"),
        (("segformer_b0", {"embed_dim": 8}), ("cffm_b0", {}), "wrong shape: head.fusion"),
        (("cffm_b0", {"focal_blocks": 2}), ("cffm_b0", {}), "unexpected: head.blocks.1"),
        (("cffm_b0", {}), ("cffm_b0", {"focal_blocks": 2}), "missing: head.blocks.1"),
        (("mrcfa_b0", {"num_references": 2}), ("mrcfa_b0", {}), "missing: head.decoders.3"),
        (("mrcfa_b0", {}), ("mrcfa_b1", {}), "head.relation"),
    ],
)
def test_another_model_is_refused_and_leaves_the_weights_alone(
    source: tuple[str, dict], model: tuple[str, dict], named: str, tmp_path: Path
) -> None:
    origin = trained(source[0], **source[1])
    save_model(origin, tmp_path / "weights.pt")
    target = fresh(model[0], **model[1])
    before = copy_of_state(target)
    with pytest.raises(CheckpointError, match=named) as refusal:
        load_pretrained(target, tmp_path / "weights.pt")
    assert f"{source[0]} with {NUM_CLASSES} classes" in str(refusal.value)
    assert loaded_keys(target, before, origin) == set()


@pytest.mark.parametrize("lost", ["head.classifier.bias", "head.value.weight", "head.fusion.mix"])
def test_a_file_that_lost_weights_is_refused(lost: str, tmp_path: Path) -> None:
    content = describe_model(trained())
    state = content["state_dict"]
    content["state_dict"] = {k: v for k, v in state.items() if not k.startswith(lost)}
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=f"missing: {lost}"):
        load_pretrained(fresh(num_classes=OWN_CLASSES), tmp_path / "weights.pt")


@pytest.mark.parametrize("form", ["model", "run"])
@pytest.mark.parametrize("origin", ["mrcfa_b0", "segformer_b0"])
def test_own_files_hold_encoder_weights(
    form: str, origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = trained(origin), fresh("cffm_b0", OWN_CLASSES)
    SAVE[form](source, tmp_path / "weights.pt")
    before = copy_of_state(model)
    report = load_backbone(model, tmp_path / "weights.pt")
    encoder = {key for key in float_keys(model) if key.startswith("backbone.")}
    assert loaded_keys(model, before, source) == encoder
    assert len(report.used) == len(encoder)
    assert f"{len(encoder)} keys used, 0 missing" in capsys.readouterr().out


def test_own_files_hold_any_encoder(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    source = trained("segformer_b0", backbone="resnet10t")
    save_model(source, tmp_path / "weights.pt")
    model = fresh("cffm_b0", backbone="resnet10t")
    load_backbone(model, tmp_path / "weights.pt", verbose=False)
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    save_released(trained("segformer_b0"), tmp_path / "mit.pth")
    with pytest.raises(TypeError, match=r"TimmBackbone.*file of this package"):
        load_backbone(model, tmp_path / "mit.pth")


@pytest.fixture
def options(root: Path, tmp_path: Path) -> list[str]:
    return [
        f"--data.root={root}",
        f"--output={tmp_path / 'run'}",
        f"--data.num_classes={NUM_CLASSES}",
        "--data.offsets=[-3,-2,-1]",
        "--data.train_transform.scale=[96,96]",
        "--data.train_transform.crop=[96,96]",
        "--data.evaluation_transform.scale=[96,96]",
        "--data.num_workers=0",
        f"--model.overrides={json.dumps(OVERRIDES)}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=false",
    ]


def test_fine_tuning_to_other_classes_from_the_command_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(source := trained("segformer_b0", OWN_CLASSES), tmp_path / "segformer.pt")
    steps = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    options += ["--model.name=mrcfa_b0", f"--checkpoint={tmp_path / 'segformer.pt'}"]
    assert main(["fit", "--config=finetune", *options, *steps]) == 0
    assert "with fresh weights: " in capsys.readouterr().out
    result = load_model(tmp_path / "run" / "last.pt")
    assert (result.config.name, result.num_classes) == ("mrcfa_b0", NUM_CLASSES)
    # One step at the start of the warm-up moves a weight by next to nothing.
    for key, value in result.backbone.named_parameters():
        difference = (value - source.backbone.get_parameter(key)).abs().max()
        assert difference < 1e-4, key


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_model_with_fresh_weights_is_not_evaluated(
    command: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(trained("segformer_b0"), tmp_path / "segformer.pt")
    options += ["--model.name=mrcfa_b0", f"--checkpoint={tmp_path / 'segformer.pt'}"]
    assert main([command, "--config=finetune", *options]) == 1
    assert "some of its weights are fresh" in capsys.readouterr().err
