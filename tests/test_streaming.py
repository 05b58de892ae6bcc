"""Streaming against the clip path, frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_streaming import TRANSFORM, kept_bytes, tiny_model, video
from vss_kernels import upsample_argmax
from vss_models import TrainedOn, VideoSegmentor, create_model
from vss_models.data import EvaluationTransform
from vss_models.data.transforms import normalise
from vss_models.inference.streaming import StreamingSegmenter

# The published evaluation schedule; frames 0..2 are labelled on their own.
PUBLISHED_START = {
    3: (0, 1, 2),
    4: (0, 2, 3),
    5: (0, 2, 4),
    6: (0, 2, 4),
    7: (0, 3, 5),
    8: (0, 3, 6),
}


def logits_by_clip(model: VideoSegmentor, images: torch.Tensor, target: int) -> torch.Tensor:
    """Returns the published evaluation of one frame, from its clip or on its own."""
    if model.num_references == 0 or target < 3:
        return model.single_frame(images[target : target + 1])
    references = PUBLISHED_START.get(target, (target - 9, target - 6, target - 3))
    return model(images[[*references, target]][None])


def check_against_clips(
    model: VideoSegmentor,
    frames: list[Any],
    images: torch.Tensor,
    size: tuple[int, int],
    precision: str = "float32",
) -> None:
    """Streams the frames and compares every bit with the clip path on the network's input."""
    stream = StreamingSegmenter(model, transform=TRANSFORM, precision=precision)
    twin = StreamingSegmenter(model, transform=TRANSFORM, precision=precision)
    through = (images.shape[-2], images.shape[-1])
    seen = set()
    for target, frame in enumerate(frames):
        labels = stream.step(frame)
        logits = twin.step_logits(images[target : target + 1])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            expected = logits_by_clip(model, images, target)
        assert torch.equal(logits, expected), target
        assert labels.dtype == torch.uint8
        assert torch.equal(labels, upsample_argmax(expected, size, through=through)[0]), target
        seen.update(labels.unique().tolist())
    assert stream.num_frames == len(frames)
    assert len(seen) > 2


@pytest.mark.parametrize("size", [(48, 85), (101, 67)])
@pytest.mark.parametrize("name", ["mrcfa_b0", "mrcfa_b1", "cffm_b0", "cffm_b1", "segformer_b0"])
@torch.no_grad()
def test_streaming_is_the_clip_path(name: str, size: tuple[int, int]) -> None:
    frames = video(64, *size)
    images = TRANSFORM(torch.from_numpy(frames).permute(0, 3, 1, 2))
    check_against_clips(tiny_model(name), list(frames), images, size)


@pytest.mark.parametrize("size", [(64, 96), (160, 32), (96, 128)])
@pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0"])
@torch.no_grad()
def test_streaming_is_the_clip_path_of_float_frames(name: str, size: tuple[int, int]) -> None:
    images = normalise(torch.from_numpy(video(61, *size)).permute(0, 3, 1, 2) / 255)
    check_against_clips(tiny_model(name), list(images), images, size)


@pytest.mark.parametrize("name", ["mrcfa_b0", "mrcfa_b1", "cffm_b0", "cffm_b1", "segformer_b0"])
@torch.no_grad()
def test_bfloat16_on_a_cpu_is_the_clip_path_under_autocast(name: str) -> None:
    frames = video(24, 101, 67)
    images = TRANSFORM(torch.from_numpy(frames).permute(0, 3, 1, 2))
    check_against_clips(tiny_model(name), list(frames), images, (101, 67), "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mrcfa_b1", "cffm_b1"])
@torch.no_grad()
def test_published_size_is_the_clip_path(name: str) -> None:
    """The published model and recipe: a frame of an odd size becomes 480x864."""
    torch.manual_seed(5)
    model = create_model(name, 124).eval()
    frame_size, transform = (361, 641), EvaluationTransform()
    stream = StreamingSegmenter(model)
    frames = video(14, *frame_size)
    images = torch.cat([transform(torch.from_numpy(f).permute(2, 0, 1)[None]) for f in frames])
    assert images.shape[-2:] == (480, 864)
    for target, frame in enumerate(frames):
        labels = stream.step(frame)
        expected = logits_by_clip(model, images, target)
        assert torch.equal(labels, upsample_argmax(expected, frame_size, through=(480, 864))[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mrcfa_b1", "cffm_b1"])
@torch.no_grad()
def test_clip_path_frame_by_frame_on_a_gpu(name: str) -> None:
    model = tiny_model(name).cuda()
    images = TRANSFORM(torch.from_numpy(video(61, 48, 85)).permute(0, 3, 1, 2)).cuda()
    stream = StreamingSegmenter(model)
    model.encode_together = False
    for target in range(61):
        logits = stream.step_logits(images[target : target + 1])
        assert torch.equal(logits, logits_by_clip(model, images, target)), target


@pytest.mark.parametrize(
    ("setting", "compiled", "expected"),
    [
        (None, False, [2, 2, 2, 2]),
        (True, False, [8]),
        (False, False, [2, 2, 2, 2]),
        (None, True, [8]),
        (False, True, [2, 2, 2, 2]),
    ],
)
@torch.no_grad()
def test_encode_together(setting: bool | None, compiled: bool, expected: list[int]) -> None:
    """One by one on a CPU, together where launches or graphs count, unless said otherwise."""
    torch.compiler.reset()
    model = tiny_model("cffm_b0")
    batches: list[int] = []
    encode = model.backbone.forward

    def record(images: torch.Tensor) -> Any:
        batches.append(len(images))
        return encode(images)

    model.backbone.forward = record  # type: ignore[method-assign]
    clip = torch.randn(2, 4, 3, 64, 96)
    exact = model(clip)
    batches.clear()
    model.encode_together = setting
    run = torch.compile(model, backend="eager") if compiled else model
    torch.testing.assert_close(run(clip), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())
    assert batches == expected


@pytest.mark.parametrize("name", ["mrcfa_b1", "cffm_b1"])
@torch.no_grad()
def test_logits_tell_the_schedule(name: str) -> None:
    """Logits are equal, and those with any reference swapped for a neighbour are far away."""
    model = tiny_model(name)
    images = TRANSFORM(torch.from_numpy(video(16, 48, 85)).permute(0, 3, 1, 2))
    stream = StreamingSegmenter(model)
    for target in range(16):
        logits = stream.step_logits(images[target : target + 1])
        expected = logits_by_clip(model, images, target)
        assert torch.equal(logits, expected), target
    for number in range(3):
        references = [6, 9, 12]
        references[number] += 1
        other = model(images[[*references, 15]][None])
        assert (other - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["mrcfa_b1", "cffm_b0", "segformer_b0"])
def test_videos_side_by_side(name: str) -> None:
    model = tiny_model(name).double()
    videos = [video(12, 50, 70, seed) for seed in (1, 2)]
    together = StreamingSegmenter(model, transform=TRANSFORM)
    labels = torch.stack([together.step(np.stack(frames)) for frames in zip(*videos, strict=True)])
    for number, frames in enumerate(videos):
        alone = StreamingSegmenter(model, transform=TRANSFORM)
        assert torch.equal(labels[:, number], torch.stack([alone.step(f) for f in frames]))


@pytest.mark.parametrize("name", ["mrcfa_b1", "cffm_b0"])
@torch.no_grad()
def test_videos_side_by_side_are_a_batch_of_clips(name: str) -> None:
    model = tiny_model(name)
    images = torch.randn(12, 2, 3, 64, 96)
    stream = StreamingSegmenter(model)
    for together in images:
        logits = stream.step_logits(together)
    assert torch.equal(logits, model(images[[2, 5, 8, 11]].transpose(0, 1)))


@pytest.mark.parametrize("name", ["mrcfa_b1", "cffm_b1"])
def test_memory_is_bounded_and_small(name: str) -> None:
    stream = StreamingSegmenter(tiny_model(name), transform=TRANSFORM)
    sizes = []
    for frame in video(40, 48, 85):
        stream.step(frame)
        sizes.append(kept_bytes(stream))
    assert max(sizes) == sizes[8] == sizes[-1]
    tokens = 2 * 3 if name == "mrcfa_b1" else 8 * 12
    channels = 16 + 40 + 64 + 32 if name == "mrcfa_b1" else 32
    assert sizes[-1] == 9 * tokens * channels * 4


def test_encoder_runs_once_a_frame() -> None:
    model = tiny_model("mrcfa_b1")
    batches: list[int] = []
    model.backbone.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
    stream = StreamingSegmenter(model, transform=TRANSFORM)
    for frame in video(12, 48, 85):
        stream.step(frame)
    assert batches == [1] * 12


def test_normalised_input_and_chosen_size() -> None:
    model = tiny_model("mrcfa_b1")
    frames = video(12, 48, 85)
    images = TRANSFORM(torch.from_numpy(frames).permute(0, 3, 1, 2))
    first, second = (StreamingSegmenter(model, transform=TRANSFORM) for _ in range(2))
    for frame, image in zip(frames, images, strict=True):
        labels = first.step(frame)
        assert torch.equal(second.step(image, size=(48, 85)), labels)
    assert second.step(images[0]).shape == images.shape[-2:]
    assert first.step(torch.from_numpy(frames[0]), size=(20, 33)).shape == (20, 33)


def test_other_offsets() -> None:
    model = tiny_model("mrcfa_b1", num_references=2)
    stream = StreamingSegmenter(model, offsets=(-2, -1), transform=TRANSFORM)
    frames = video(6, 48, 85)
    images = TRANSFORM(torch.from_numpy(frames).permute(0, 3, 1, 2))
    labels = [stream.step(frame) for frame in frames]
    with torch.no_grad():
        logits = model(images[[3, 4, 5]][None])
    size = (images.shape[-2], images.shape[-1])
    assert torch.equal(labels[-1], upsample_argmax(logits, (48, 85), through=size)[0])


def test_the_offsets_a_model_was_trained_with_are_the_default() -> None:
    model = tiny_model("mrcfa_b1", num_references=2)
    model.trained_on = TrainedOn(reference_offsets=(-5, -1))
    assert StreamingSegmenter(model).offsets == (-5, -1)
    assert StreamingSegmenter(model, offsets=(-2, -1)).offsets == (-2, -1)


def test_reset_starts_anew() -> None:
    stream = StreamingSegmenter(tiny_model("cffm_b1"), transform=TRANSFORM)
    frames = video(8, 48, 85)
    first = [stream.step(frame) for frame in frames]
    with pytest.raises(ValueError, match=r"changed from .* call reset"):
        stream.step(video(1, 85, 48)[0])
    with pytest.raises(ValueError, match=r"changed from .* call reset"):
        stream.step(np.stack([frames[0], frames[0]]))
    stream.reset()
    stream.step(video(1, 85, 48)[0])
    stream.reset()
    assert all(torch.equal(stream.step(f), old) for f, old in zip(frames, first, strict=True))


def test_bad_input_is_named() -> None:
    model = tiny_model("mrcfa_b1")
    with pytest.raises(ValueError, match="offsets must name the 3 references"):
        StreamingSegmenter(model, offsets=(-2, -1))
    stream = StreamingSegmenter(model, transform=TRANSFORM)
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        stream.step(np.zeros((48, 85, 3), np.int32))
    with pytest.raises(TypeError, match="got list"):
        stream.step([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8 must have the shape .*got \(3, 48, 85\)"):
        stream.step(np.zeros((3, 48, 85), np.uint8))
    with pytest.raises(ValueError, match=r"must have the shape .*got \(48, 96, 3\)"):
        stream.step(torch.zeros(48, 96, 3))
    assert stream.num_frames == 0
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval"):
        stream.step(np.zeros((48, 85, 3), np.uint8))
    with pytest.raises(ValueError, match=r"model\.eval"):
        StreamingSegmenter(model)


@pytest.mark.parametrize("size", [(0, 5), (48,), (-1, 5)])
def test_a_wrong_size_of_labels_is_refused_before_the_frame_is_taken_in(size: Any) -> None:
    stream = StreamingSegmenter(tiny_model("mrcfa_b0"), transform=TRANSFORM)
    frame = np.zeros((48, 85, 3), np.uint8)
    with pytest.raises(ValueError, match="size must be"):
        stream.step(frame, size)
    assert stream.num_frames == 0
    stream.step(frame, (24, 40))
    assert stream.num_frames == 1


def test_another_frame_size_is_refused_even_if_the_network_sees_the_same_one() -> None:
    transform = EvaluationTransform((96, 64))
    stream = StreamingSegmenter(tiny_model("mrcfa_b0"), transform=transform)
    stream.step(np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(ValueError, match=r"changed from \(64, 96\) to \(128, 192\).*reset"):
        stream.step(np.zeros((128, 192, 3), np.uint8))
    stream.reset()
    assert stream.step(np.zeros((128, 192, 3), np.uint8)).shape == (128, 192)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_frames_of_any_type(dtype: torch.dtype) -> None:
    frame = normalise(torch.from_numpy(video(1, 64, 96)[0]).permute(2, 0, 1) / 255).to(dtype)
    model = tiny_model("mrcfa_b0")
    labels = StreamingSegmenter(model).step(frame)
    assert torch.equal(labels, StreamingSegmenter(model).step(frame.float()))
