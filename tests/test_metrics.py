"""The metrics against their definitions, in pieces, and over two processes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vss_models.metrics import SegmentationMetrics, VideoConsistency

VOID = 255


def random_video(length: int, seed: int, num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a video whose labels and predictions change rarely enough for long constant runs."""
    generator = np.random.default_rng(seed)

    def persistent(values: list[int], change: float) -> np.ndarray:
        frames = [generator.choice(values, size=(7, 9))]
        for _ in range(length - 1):
            changed = generator.random((7, 9)) < change
            frames.append(np.where(changed, generator.choice(values, size=(7, 9)), frames[-1]))
        return np.stack(frames)

    labels = persistent([*range(num_classes), VOID], 0.03)
    noise = persistent([0, 0, 0, 0, 1], 0.05)
    predictions = np.where(labels == VOID, 0, (labels + noise) % num_classes)
    return torch.from_numpy(predictions.astype(np.uint8)), torch.from_numpy(labels.astype(np.uint8))


def consistency_by_definition(
    videos: list[tuple[torch.Tensor, torch.Tensor]], window: int, definition: str
) -> tuple[float, int]:
    """Returns the mean over windows and their number, window by window and pixel by pixel."""
    ratios = []
    for predictions, labels in videos:
        length = len(labels)
        if definition == "published":
            starts = range(length - window) if length > 16 else range(0)
        else:
            starts = range(length - window + 1)
        for start in starts:
            constant = consistent = 0
            for row, column in itertools.product(*map(range, labels.shape[1:])):
                label = set(labels[start : start + window, row, column].tolist())
                prediction = set(predictions[start : start + window, row, column].tolist())
                if len(label) != 1 or (definition == "corrected" and label == {VOID}):
                    continue
                constant += 1
                consistent += (
                    prediction == label if definition == "corrected" else len(prediction) == 1
                )
            if constant:
                ratios.append(consistent / constant)
    return (sum(ratios) / len(ratios) if ratios else math.nan), len(ratios)


@pytest.mark.parametrize("definition", ["published", "corrected"])
@pytest.mark.parametrize("window", [2, 3, 8, 16])
def test_consistency_is_the_definition(window: int, definition: str) -> None:
    videos = [random_video(length, seed) for seed, length in enumerate((1, 8, 16, 17, 18, 23))]
    metric = VideoConsistency(window, definition)
    for predictions, labels in videos:
        metric.update(predictions, labels)
    expected, windows = consistency_by_definition(videos, window, definition)
    assert 0 < expected < 1
    assert int(metric.windows) == windows
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_published_quirks() -> None:
    labels = torch.zeros(17, 2, 2, dtype=torch.uint8)
    labels[:, 0] = VOID
    wrong = torch.full_like(labels, 5)
    metric = VideoConsistency(16)
    metric.update(wrong, labels)
    # Constant but wrong, half of it on void; of the two windows the last one is left out.
    assert metric.compute().item() == 1.0
    assert int(metric.windows) == 1
    metric.update(wrong[:16], labels[:16])
    assert int(metric.windows) == 1
    corrected = VideoConsistency(16, "corrected")
    corrected.update(wrong, labels)
    assert corrected.compute().item() == 0.0
    assert int(corrected.windows) == 2


def test_windows_without_a_constant_label_are_left_out() -> None:
    labels = torch.arange(20, dtype=torch.uint8)[:, None, None].expand(20, 3, 3)
    metric = VideoConsistency(8)
    metric.update(labels, labels)
    assert int(metric.windows) == 0
    assert math.isnan(metric.compute().item())


@pytest.mark.parametrize("definition", ["published", "corrected"])
def test_a_video_in_pieces_is_the_whole_video(definition: str) -> None:
    whole, pieces = VideoConsistency(8, definition), VideoConsistency(8, definition)
    for seed in (3, 4):
        predictions, labels = random_video(21, seed)
        whole.update(predictions, labels)
        at = 0
        for size in (1, 6, 0, 9, 5):
            # The buffer is used again for the next piece, as a loader would.
            buffers = predictions[at : at + size].clone(), labels[at : at + size].clone()
            pieces.update(*buffers, new_video=at == 0)
            for buffer in buffers:
                buffer.fill_(77)
            at += size
    assert whole.compute() == pieces.compute()
    assert whole.windows == pieces.windows


def iou_by_definition(
    predictions: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> dict[int, float]:
    result = {}
    pairs = list(zip(predictions.flatten().tolist(), labels.flatten().tolist(), strict=True))
    for number in range(num_classes):
        both = sum(p == number and t == number for p, t in pairs)
        either = sum(t != VOID and (p == number or t == number) for p, t in pairs)
        result[number] = both / either if either else math.nan
    return result


def test_segmentation_metrics_are_the_definition() -> None:
    num_classes = 6
    generator = torch.Generator().manual_seed(1)
    # Class 4 is only predicted, class 5 is nowhere; void pixels carry predictions too.
    labels = torch.randint(0, 4, (3, 11, 13), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = VOID
    noise = torch.randint(0, 5, labels.shape, generator=generator)
    keep = torch.rand(labels.shape, generator=generator) < 0.6
    predictions = torch.where(keep & (labels != VOID), labels, noise)

    metric = SegmentationMetrics(num_classes)
    for prediction, label in zip(predictions, labels, strict=True):
        metric.update(prediction.to(torch.uint8), label.to(torch.uint8))
    result = {name: value.tolist() for name, value in metric.compute().items()}

    iou = iou_by_definition(predictions, labels, num_classes)
    labelled = labels != VOID
    frequency = [((labels == k).sum() / labelled.sum()).item() for k in range(num_classes)]
    right = (predictions == labels) & labelled
    assert result["class_iou"] == pytest.approx(list(iou.values()), nan_ok=True)
    assert iou[4] == 0.0
    assert math.isnan(iou[5])
    assert result["mean_iou"] == pytest.approx(sum(iou[k] for k in range(4)) / 4)
    assert result["weighted_iou"] == pytest.approx(sum(frequency[k] * iou[k] for k in range(4)))
    assert result["pixel_accuracy"] == pytest.approx((right.sum() / labelled.sum()).item())
    assert result["class_frequency"] == pytest.approx(frequency)
    recall = [(right & (labels == k)).sum() / (labels == k).sum() for k in range(4)]
    assert result["class_accuracy"][:4] == pytest.approx([value.item() for value in recall])
    assert all(math.isnan(value) for value in result["class_accuracy"][4:])


@pytest.mark.parametrize("piece", [1, 5, 40])
def test_short_videos_are_left_out_on_request(piece: int) -> None:
    """The published script leaves out videos of 16 frames or fewer; training counts them."""
    videos = [random_video(length, seed) for seed, length in enumerate((16, 17, 3, 30, 16))]
    every, longer = SegmentationMetrics(3), SegmentationMetrics(3, shortest_video=17)
    expected = torch.zeros(2, 3, 3, dtype=torch.int64)
    for predictions, labels in videos:
        for start in range(0, len(labels), piece):
            part = slice(start, start + piece)
            for metric in (every, longer):
                metric.update(predictions[part], labels[part], new_video=start == 0)
        for true, predicted in itertools.product(range(3), repeat=2):
            count = ((labels == true) & (predictions == predicted)).sum()
            expected[0, true, predicted] += count
            expected[1, true, predicted] += count * (len(labels) > 16)
    assert torch.equal(every.confusion, expected[0])
    assert torch.equal(longer.confusion, expected[1])
    assert every.compute()["mean_iou"] != longer.compute()["mean_iou"]
    longer.reset()
    longer.update(*(frames[:9] for frames in videos[3]))
    longer.update(*(frames[9:] for frames in videos[3]), new_video=True)
    assert int(longer.confusion.sum()) == int((videos[3][1][9:] != VOID).sum())
    longer.reset()
    longer.update(*(frames[:16] for frames in videos[3]))
    longer.reset()
    longer.update(*(frames[:1] for frames in videos[3]), new_video=False)
    assert int(longer.confusion.sum()) == 0


def test_nothing_labelled_is_nan() -> None:
    metric = SegmentationMetrics(3)
    metric.update(torch.zeros(2, 2, dtype=torch.uint8), torch.full((2, 2), VOID))
    result = metric.compute()
    assert all(math.isnan(result[name]) for name in ("mean_iou", "weighted_iou", "pixel_accuracy"))


def test_bad_input_is_named() -> None:
    labels = torch.zeros(2, 3, 4, dtype=torch.uint8)
    metric = SegmentationMetrics(3)
    with pytest.raises(ValueError, match=r"predictions must be classes 0\.\.2 .* got 3"):
        metric.update(labels + 3, labels)
    with pytest.raises(ValueError, match=r"labels must be classes 0\.\.2 .* got 7"):
        metric.update(labels, labels + 7)
    with pytest.raises(ValueError, match="must have one shape"):
        metric.update(labels[:1], labels)
    with pytest.raises(TypeError, match=r"predictions must be .* torch\.float32"):
        metric.update(labels.float(), labels)
    with pytest.raises(ValueError, match="ignore_index"):
        SegmentationMetrics(300)
    with pytest.raises(ValueError, match="shortest_video must be at least 1 frame, got 0"):
        SegmentationMetrics(3, shortest_video=0)
    with pytest.raises(ValueError, match="definition must be one of"):
        VideoConsistency(8, "exact")
    with pytest.raises(ValueError, match="window must be"):
        VideoConsistency(0)
    consistency = VideoConsistency(8)
    with pytest.raises(ValueError, match="none was begun"):
        consistency.update(labels, labels, new_video=False)
    with pytest.raises(ValueError, match=r"must be \(L, H, W\)"):
        consistency.update(labels[0], labels[0])
    consistency.update(labels, labels)
    with pytest.raises(ValueError, match="one size"):
        consistency.update(labels[:, :2], labels[:, :2], new_video=False)


def _evaluate_share(rank: int, folder: str, world_size: int) -> None:
    if world_size > 1:
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size)
    segmentation, consistency = SegmentationMetrics(3), VideoConsistency(8)
    for number in range(rank, 5, world_size):
        predictions, labels = random_video(18 + number, number)
        segmentation.update(predictions, labels)
        consistency.update(predictions, labels)
    figures = segmentation.compute(), consistency.compute()
    torch.save(figures, Path(folder, f"{world_size}_{rank}.pt"))
    if world_size > 1:
        dist.destroy_process_group()


def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    _evaluate_share(0, str(tmp_path), 1)
    mp.spawn(_evaluate_share, (str(tmp_path), 2), nprocs=2)
    segmentation, consistency = torch.load(tmp_path / "1_0.pt")
    for rank in (0, 1):
        other_segmentation, other_consistency = torch.load(tmp_path / f"2_{rank}.pt")
        for name, value in segmentation.items():
            assert torch.equal(value, other_segmentation[name]), name
        # The windows are added up in another order.
        assert torch.allclose(consistency, other_consistency, rtol=1e-14, atol=0)
