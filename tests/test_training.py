"""Training and evaluation: figures against brute force, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.tiny_training import (
    NUM_CLASSES,
    OVERRIDES,
    make_data,
    make_module,
    run,
)
from vss_models import TrainedOn, VideoSegmentor, create_model
from vss_models.checkpoints import open_model, save_model
from vss_models.cli import main
from vss_models.data import ClipTestDataset
from vss_models.training import (
    EvaluationReport,
    Evaluator,
    OptimizerSettings,
    SampleOverlays,
    SegmentationModule,
    evaluate,
    write_submission,
)

NAMES = ("mrcfa_b1", "cffm_b0", "segformer_b0")
PUBLISHED = [-9, -6, -3]


def random_model(name: str = "mrcfa_b1") -> VideoSegmentor:
    """Returns a model whose predictions vary from pixel to pixel and from frame to frame."""
    torch.manual_seed(3)
    model = create_model(name, NUM_CLASSES, **OVERRIDES).eval()
    for parameter in model.head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def clip_logits(model: VideoSegmentor, item: dict[str, Any]) -> torch.Tensor:
    """Computes the definition: the whole clip through the model, or its one frame."""
    if item["single_frame"] and model.num_references:
        return model.single_frame(item["clip"])
    return model(item["clip"][None])


def test_a_left_out_frame_is_noticed(root: Path) -> None:
    data = make_data(root, offsets=PUBLISHED)
    items = iter(data.test_dataloader())
    evaluator = Evaluator(random_model(), PUBLISHED, data.class_table().names)
    evaluator.reset("cpu")
    evaluator.update(next(items))
    next(items)
    with pytest.raises(ValueError, match="expected frame 1 of val_0000, got frame 2"):
        evaluator.update(next(items))


def brute_force(model: VideoSegmentor, dataset: ClipTestDataset) -> dict[str, Any]:
    """All figures from stored predictions, window by window and class by class."""
    videos: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for number in range(len(dataset)):
        item = dataset[number]
        with torch.no_grad():
            logits = clip_logits(model, item)
        through = F.interpolate(logits, item["clip"].shape[-2:], mode="bilinear")
        full = F.interpolate(through, item["original_size"], mode="bilinear")
        pair = (full.argmax(1)[0].numpy(), item["labels"].numpy())
        videos.setdefault(item["video_index"], []).append(pair)
    figures = frame_figures(list(videos.values()))
    longer = [video for video in videos.values() if len(video) > 16]
    figures["mean_iou_of_long_videos"] = frame_figures(longer)["mean_iou"]
    for window in (8, 16):
        for kind in ("published", "corrected"):
            figures[f"VC{window} {kind}"] = consistency(list(videos.values()), window, kind)
    return figures


def frame_figures(videos: list[list[tuple[np.ndarray, np.ndarray]]]) -> dict[str, Any]:
    """Returns the figures that do not look at the order of the frames."""
    predicted = np.stack([pair[0] for video in videos for pair in video])
    truth = np.stack([pair[1] for video in videos for pair in video])
    ious, frequencies = [], []
    for number in range(NUM_CLASSES):
        p, t = (predicted == number) & (truth != 255), truth == number
        union = (p | t).sum()
        ious.append((p & t).sum() / union if union else math.nan)
        frequencies.append(t.sum() / (truth != 255).sum())
    return {
        "class_iou": ious,
        "mean_iou": np.mean(
            [iou for iou, frequency in zip(ious, frequencies, strict=True) if frequency > 0]
        ),
        "weighted_iou": sum(i * s for i, s in zip(ious, frequencies, strict=True) if s > 0),
        "pixel_accuracy": (predicted == truth)[truth != 255].mean(),
    }


def consistency(videos: list[list[tuple[np.ndarray, np.ndarray]]], window: int, kind: str) -> float:
    ratios = []
    for video in videos:
        predicted = np.stack([pair[0] for pair in video])
        truth = np.stack([pair[1] for pair in video])
        published = kind == "published"
        if published and len(video) <= 16:
            continue
        for start in range(len(video) - window + (0 if published else 1)):
            t, p = truth[start : start + window], predicted[start : start + window]
            constant = (t == t[0]).all(0)
            kept = constant & (p == p[0]).all(0)
            if not published:
                constant &= t[0] != 255
                kept = constant & (p == t).all(0)
            if constant.any():
                ratios.append(kept.sum() / constant.sum())
    return float(np.mean(ratios))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_equals_brute_force(root: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(root, tmp_path / "set")
    root = tmp_path / "set"
    short = root / "data" / (root / "val.txt").read_text().split()[1]
    for path in [*sorted(short.glob("origin/*"))[16:], *sorted(short.glob("mask/*"))[16:]]:
        path.unlink()
    model = random_model(name)
    offsets = PUBLISHED if model.num_references else []
    dataset = make_data(root, offsets=offsets).evaluation_dataset("val")
    report = evaluate(model, dataset)
    expected = brute_force(model, dataset)
    assert (report.num_videos, report.num_frames) == (2, 34)
    assert report.class_names == dataset.class_names
    # At a tie between two classes, float32 may decide either way; none occurs here.
    for figure in ("mean_iou", "mean_iou_of_long_videos", "weighted_iou", "pixel_accuracy"):
        assert getattr(report, figure) == pytest.approx(expected[figure], abs=1e-9), figure
    assert report.class_iou == pytest.approx(expected["class_iou"], abs=1e-9, nan_ok=True)
    for window in ("VC8", "VC16"):
        for kind in ("published", "corrected"):
            value = report.video_consistency[window][kind]
            assert value == pytest.approx(expected[f"{window} {kind}"], abs=1e-9), (window, kind)
    assert 0.0 < report.mean_iou < 1.0
    assert abs(report.mean_iou_of_long_videos - report.mean_iou) > 1e-6
    assert report.video_consistency["VC8"]["published"] < 1.0


CLI_SETTINGS = [
    "--config=mrcfa_synthetic",
    "--data.evaluation_transform.scale=[96,96]",
    f"--model.overrides={json.dumps(OVERRIDES)}",
    "--model.name=mrcfa_b1",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
]


@pytest.mark.parametrize("form", ["model", "run"])
def test_vss_test_writes_report_and_predictions(root: Path, tmp_path: Path, form: str) -> None:
    model = random_model()
    file = tmp_path / "weights"
    if form == "model":
        save_model(model, file)
    else:
        module = make_module("mrcfa_b1")
        module.model.load_state_dict(model.state_dict())
        saved: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(saved)
        torch.save(saved, file)
    options = [*CLI_SETTINGS, f"--data.root={root}", f"--checkpoint={file}", f"--output={tmp_path}"]
    options.append("--report.predictions=true")
    assert main(["test", *options]) == 0

    seen = {}
    dataset = make_data(root, offsets=PUBLISHED).evaluation_dataset("val")
    report = evaluate(
        model, dataset, on_frame=lambda item, labels: seen.update({key(item): labels.numpy()})
    )
    folder = tmp_path / "evaluation"
    written = json.loads((folder / "report.json").read_text())
    assert written["mean_iou"] == report.mean_iou
    assert written["video_consistency"] == report.video_consistency
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["class"] for row in rows] == list(report.class_names)
    assert (
        f"| mIoU (all videos) | {100 * report.mean_iou:.2f} |" in (folder / "report.md").read_text()
    )

    files = sorted((folder / "result_submission").rglob("*.png"))
    assert [str(path.relative_to(folder / "result_submission")) for path in files] == sorted(seen)
    for path in files:
        labels = np.asarray(Image.open(path))
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, seen[str(path.relative_to(folder / "result_submission"))] + 1)

    if form == "model":
        before = (folder / "report.json").stat().st_mtime_ns
        assert main(["test", *options]) == 1
        assert (folder / "report.json").stat().st_mtime_ns == before
        assert main(["test", *options, "--report.overwrite=true"]) == 0
        assert (folder / "report.json").stat().st_mtime_ns != before


def key(item: dict[str, Any]) -> str:
    return f"{item['video']}/{item['frame']}.png"


def test_submission_with_palette(tmp_path: Path) -> None:
    palette = np.arange(768, dtype=np.int64).reshape(256, 3).astype(np.uint8)
    labels = torch.tensor([[0, 8], [254, 1]])
    write_submission(labels, tmp_path / "frame.png", palette)
    image = Image.open(tmp_path / "frame.png")
    assert np.array_equal(np.asarray(image), labels.numpy() + 1)
    assert np.array_equal(np.asarray(image.convert("RGB")), palette[labels.numpy()])
    with pytest.raises(ValueError, match=r"0\.\.254"):
        write_submission(torch.tensor([[255]]), tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_report_shows_absent_classes_as_such(tmp_path: Path) -> None:
    report = EvaluationReport(0.5, 0.25, 0.75, ("a", "b"), (0.5, math.nan), (1.0, 0.0))
    report.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["class_iou"] == [0.5, None]
    assert "| b | - | 0.00 |" in report.markdown()
    assert (tmp_path / "classes.csv").read_text().splitlines()[2] == "b,,0.000000"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(root: Path, name: str) -> None:
    """Distributed training stops at a parameter without gradient."""
    module = make_module(name)
    offsets = [-3, -2, -1] if module.model.num_references else []
    batch = next(iter(make_data(root, offsets=offsets).train_dataloader()))
    module.loss(module.model(batch["clip"]), batch["labels"]).backward()
    missing = [key for key, p in module.model.named_parameters() if p.grad is None]
    assert missing == []


@torch.no_grad()
def mean_loss(module: SegmentationModule, batches: list[dict[str, torch.Tensor]]) -> float:
    return float(
        np.mean([module.loss(module.model(b["clip"]), b["labels"]).item() for b in batches])
    )


def test_training_lowers_the_loss_and_logs_it(root: Path, tmp_path: Path) -> None:
    module = make_module(optimizer=OptimizerSettings(lr=1e-2, head_lr_multiplier=1, warmup_steps=2))
    data = make_data(root, offsets=PUBLISHED)
    batches = list(islice(data.train_dataloader(), 4))
    before = mean_loss(module, batches)
    run(
        module,
        data,
        tmp_path,
        24,
        logger=None,
        log_every_n_steps=2,
        val_check_interval=12,
        limit_val_batches=6,
        overlays=SampleOverlays(every_n_steps=12, count=2),
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    assert mean_loss(module.train(), batches) < 0.8 * before
    tags = set(events.Tags()["scalars"])
    assert {f"train/loss_target_{number}" for number in range(4)} <= tags
    assert {"train/loss_per_frame", "lr-AdamW/backbone", "lr-AdamW/head", "val/mIoU"} <= tags
    # The parts add up to the whole: 0.5 of the per-frame loss and the mean of the four decoders.
    parts = {tag: events.Scalars(tag)[0] for tag in tags if tag.startswith("train/loss")}
    decoders = np.mean([parts[f"train/loss_target_{number}"].value for number in range(4)])
    whole = 0.5 * parts["train/loss_per_frame"].value + decoders
    step = parts["train/loss_per_frame"].step
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged[step] == pytest.approx(whole, rel=1e-5)
    images = events.Images("train/frame_truth_prediction")
    assert [image.step for image in images] == [12, 24]
    assert (images[0].width, images[0].height) == (3 * 96, 2 * 96)
    for name in ("last.pt", "last.ckpt"):
        trained = open_model(tmp_path / name)
        assert trained.trained_on == TrainedOn(
            data.class_table().names,
            data.class_table().colours,
            tuple(PUBLISHED),
            data.evaluation_transform.scale,
            "float32",
        )


def test_bfloat16_trains(root: Path, tmp_path: Path) -> None:
    module = make_module()
    before = module.model.head.classifier.weight.detach().clone()
    run(module, make_data(root), tmp_path, 3, precision="bf16-mixed")
    after = module.model.head.classifier.weight
    assert after.dtype == torch.float32
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    assert open_model(tmp_path / "last.pt").trained_on.precision == "bfloat16"


@pytest.mark.parametrize(
    ("module_settings", "data_settings", "message"),
    [
        ({}, {"num_classes": 7}, "the model has 9 classes, the data 7"),
        ({"num_classes": 7}, {"num_classes": 7}, "names 9 classes, but num_classes is 7"),
        ({}, {"offsets": [-1]}, r"the 3 references of this model, got \[-1\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    root: Path,
    tmp_path: Path,
    module_settings: dict[str, Any],
    data_settings: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        run(make_module(**module_settings), make_data(root, **data_settings), tmp_path, 1)


def test_missing_settings_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root is not set"):
        run(make_module(), make_data(None), tmp_path, 1)
    with pytest.raises(ValueError, match=r"trainer\.max_steps must be at least 1"):
        run(make_module(), make_data(root), tmp_path, -1)
    with pytest.raises(ValueError, match="one entry for each of the 9 classes, got 2"):
        make_module(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="batch_size"):
        make_data(root, batch_size=0)


def test_a_loss_that_is_not_finite_stops_the_run(root: Path, tmp_path: Path) -> None:
    module = make_module()
    with torch.no_grad():
        module.model.head.classifier.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        run(module, make_data(root), tmp_path, 2, log_every_n_steps=1)
