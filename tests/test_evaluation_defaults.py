"""`vss test` takes from its checkpoint what nobody says otherwise, and names what differs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.support.tiny_training import (
    NUM_CLASSES,
    OVERRIDES,
    make_data,
    make_module,
    run,
)
from tests.support.tiny_video import read_labels
from vss_models import TrainedOn, VideoSegmentor, create_model, load_model
from vss_models.checkpoints import save_model, save_released
from vss_models.cli import main
from vss_models.data import EvaluationTransform, choose_classes
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.training import VideoDataModule, evaluate
from vss_models.training.checkpoint_defaults import count_classes

OFFSETS = (-3, -2, -1)
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
]


def trained_model(
    root: Path, name: str = "mrcfa_b1", num_classes: int = NUM_CLASSES
) -> VideoSegmentor:
    """A model with random weights that says it was trained on small frames, in bfloat16."""
    torch.manual_seed(3)
    model = create_model(name, num_classes, **OVERRIDES).eval()
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, torch.nn.Conv2d) and module.out_channels == num_classes:
                module.weight.mul_(5)
    names = choose_classes(root, None, "vspw").names if num_classes == NUM_CLASSES else None
    offsets = OFFSETS if model.num_references else ()
    model.trained_on = TrainedOn(names, None, offsets, (90, 60), "bfloat16")
    return model


def run_test(root: Path, checkpoint: Path, output: Path, *options: str) -> dict[str, Any]:
    """The report of `vss test`."""
    fixed = [f"--data.root={root}", f"--checkpoint={checkpoint}", f"--output={output}"]
    assert main(["test", *options, *fixed, *QUIET]) == 0
    return json.loads((output / "evaluation" / "report.json").read_text())


def write_run(model: VideoSegmentor, path: Path) -> None:
    """The checkpoint of a run that trained the model."""
    module = make_module("mrcfa_b1")
    module.model.load_state_dict(model.state_dict())
    module.model.trained_on = model.trained_on
    saved: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    torch.save(saved, path)


@pytest.mark.parametrize("form", ["model", "run"])
@pytest.mark.parametrize("config", [[], ["--config=mrcfa_b1_vspw"]])
def test_the_checkpoints_settings_are_the_defaults(
    root: Path, tmp_path: Path, form: str, config: list[str]
) -> None:
    model, path = trained_model(root), tmp_path / "weights"
    save_model(model, path) if form == "model" else write_run(model, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the model was trained with")
        report = run_test(root, path, tmp_path, *config)
    settings = {"offsets": OFFSETS, "evaluation_transform": EvaluationTransform((90, 60))}
    dataset = make_data(root, **settings).evaluation_dataset("val")
    expected = evaluate(model, dataset)
    assert report["mean_iou"] == expected.mean_iou
    assert report["video_consistency"] == expected.video_consistency
    # Each of the settings counts.
    model.trained_on = TrainedOn(precision="float32")
    assert evaluate(model, dataset).pixel_accuracy != expected.pixel_accuracy


def test_labels_of_test_segment_and_python_are_the_same(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(trained_model(root), path)
    run_test(root, path, tmp_path, "--report.predictions=true")
    video = (root / "val.txt").read_text().split()[0]
    frames = sorted((root / "data" / video / "origin").iterdir())
    tested = [
        np.asarray(Image.open(file)) - 1
        for file in sorted((tmp_path / "evaluation" / "result_submission" / video).iterdir())
    ]
    options = ["--checkpoint", str(path), "--out", str(tmp_path / "out"), "--no-overlay"]
    source = str(root / "data" / video)
    assert main(["segment", source, *options, "--device", "cpu"]) == 0
    segmented = list(read_labels(tmp_path / "out" / video).values())
    stream = StreamingSegmenter(load_model(path))
    streamed = [
        stream.step(np.asarray(Image.open(frame).convert("RGB"))).numpy() for frame in frames
    ]
    assert np.array_equal(tested, segmented)
    assert np.array_equal(tested, streamed)
    assert len(np.unique(tested)) > 2


def test_other_settings_warn_with_both_values(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(trained_model(root), path)
    other = [
        "--data.offsets=[-9,-6,-3]",
        "--data.evaluation_transform.scale=[120,80]",
        "--trainer.precision=32-true",
    ]
    with pytest.warns(UserWarning, match="the model was trained with") as caught:
        run_test(root, path, tmp_path, "--config=mrcfa_b1_vspw", *other)
    messages = [str(warning.message) for warning in caught]
    for before, now, option in (
        ("reference_offsets (-3, -2, -1)", "(-9, -6, -3)", "data.offsets"),
        ("frame_scale (90, 60)", "(120, 80)", "data.evaluation_transform.scale"),
        ("precision 'bfloat16'", "'float32'", "trainer.precision"),
    ):
        expected = f"the model was trained with {before}, this evaluation has {now} ({option})"
        assert any(message.startswith(expected) for message in messages), option


def test_a_runs_checkpoint_given_to_the_trainer_warns_too(root: Path, tmp_path: Path) -> None:
    run(make_module("mrcfa_b0"), make_data(root), tmp_path, 1)
    options = [f"--data.root={root}", f"--output={tmp_path}", "--ckpt_path=last", *QUIET]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the model was trained with")
        assert main(["test", *options]) == 0
    other = ["--data.offsets=[-9,-6,-3]", "--report.overwrite=true"]
    with pytest.warns(UserWarning, match=r"trained with reference_offsets \(-3, -2, -1\), this"):
        assert main(["test", *options, *other]) == 0


def test_an_evaluation_does_not_ask_for_the_seed_of_the_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_module("mrcfa_b0"), make_data(root), tmp_path, 1)
    options = [f"--data.root={root}", f"--output={tmp_path}", "--ckpt_path=last", *QUIET]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*callbacks")
        assert main(["test", *options, "--seed=7"]) == 0


def test_a_wrong_number_of_classes_names_the_option(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(trained_model(root), tmp_path / "own.pt")
    save_model(trained_model(root, num_classes=4), tmp_path / "four.pt")
    save_released(trained_model(root, num_classes=4), tmp_path / "released.pth")

    def error_of(command: str, checkpoint: str, *options: str) -> str:
        fixed = [f"--data.root={root}", f"--output={tmp_path / 'out'}", *QUIET]
        with_checkpoint = [f"--checkpoint={tmp_path / checkpoint}"] if checkpoint else []
        assert main([command, *fixed, *with_checkpoint, *options]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    listed = root / "classes.txt"
    for name in ("four.pt", "released.pth"):
        message = error_of("test", name)
        assert f"the checkpoint has 4 classes, {listed} names {NUM_CLASSES}: give a ch" in message
        assert message.count("\n") == 1
    message = error_of("test", "own.pt", "--data.num_classes=4")
    assert f"the checkpoint has {NUM_CLASSES} classes, --data.num_classes is 4: leave" in message
    message = error_of("fit", "", "--data.num_classes=4")
    assert (
        f"names {NUM_CLASSES} classes, but num_classes is 4: leave out num_classes (--d" in message
    )


@pytest.mark.parametrize(
    ("lines", "options", "number"),
    [
        (11, [], 11),
        (11, ["--data.num_classes=11"], 11),
        (None, [], 124),
        (None, ["--data.num_classes=7"], 7),
        (256, ["--data.label_mapping=identity"], 255),
    ],
)
def test_the_number_of_classes_is_that_of_the_list(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lines: int | None,
    options: list[str],
    number: int,
) -> None:
    if lines is not None:
        first = 0 if options and "identity" in options[0] else 1
        text = "".join(f"{value + first} class_{value}\n" for value in range(lines))
        (tmp_path / "classes.txt").write_text(text)
    arguments = ["fit", "--config=mrcfa_b0_vspw", f"--data.root={tmp_path}", *options]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    assert end.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)["data"]
    mapping, given = settings["label_mapping"], settings["num_classes"]
    assert count_classes(tmp_path, mapping, given) == number
    data = VideoDataModule(tmp_path, given, mapping)
    assert data.num_classes == len(data.class_table()) == number
