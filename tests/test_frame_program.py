"""The pieces of a video's step at fixed addresses: ring, upload, prepared weights, recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.recorded_calls import RecordedCalls
from tests.support.tiny_streaming import TRANSFORM, rings, tiny_model, video
from vss_kernels import upsample_argmax
from vss_models import VideoSegmentor
from vss_models.data import EvaluationTransform
from vss_models.inference.compile import CUDA_GRAPH
from vss_models.inference.frame_program import FrameProgram
from vss_models.inference.frame_ring import FrameRing
from vss_models.inference.frame_upload import FrameUpload
from vss_models.inference.prepared import PreparedModel
from vss_models.inference.streaming import StreamingSegmenter

NAMES = pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0", "segformer_b0"])
CPU = torch.device("cpu")


def recorded(
    model: VideoSegmentor, precision: str = "float32"
) -> tuple[StreamingSegmenter, list[RecordedCalls]]:
    """A segmenter that does what it does on a GPU, but for the GPU."""
    stream = StreamingSegmenter(model, transform=TRANSFORM, precision=precision)
    span = 9 if model.num_references else 0
    capture = RecordedCalls()
    stream._program = FrameProgram(model, TRANSFORM, span, precision, capture=capture)
    return stream, capture


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@NAMES
def test_recorded_steps_are_the_same(name: str, precision: str) -> None:
    """From bytes to labels, two videos side by side; a replay writes where the one before did."""
    model = tiny_model(name)
    plain = StreamingSegmenter(model, transform=TRANSFORM, precision=precision)
    fast, capture = recorded(model, precision)
    assert fast._program.takes_bytes
    frames = np.stack([video(16, 48, 85, seed) for seed in (0, 1)], axis=1)
    labels = [fast.step(pair) for pair in frames]
    for pair, have in zip(frames, labels, strict=True):
        assert torch.equal(have, plain.step(pair))
    related = 1 if model.num_references else 0
    assert capture.recorded == (related or 1)
    # The very first frame and two more of each kind are not recorded.
    assert capture.replayed == (16 - 3 - 2 if related else 16 - 2)


@NAMES
def test_warming_up_leaves_the_video_alone(name: str) -> None:
    model = tiny_model(name)
    frames = video(14, 48, 85)
    plain, (fast, capture) = StreamingSegmenter(model, transform=TRANSFORM), recorded(model)
    fast.warm_up((48, 85))
    count = capture.recorded
    assert count == (2 if model.num_references else 1)
    for number, frame in enumerate(frames):
        if number == 11:
            fast.warm_up((48, 85))
            fast.warm_up((85, 48))
        assert torch.equal(fast.step(frame), plain.step(frame))
    assert capture.recorded == 2 * count  # those of the other size came on top


def test_videos_of_several_sizes_one_after_the_other() -> None:
    model = tiny_model("mrcfa_b0")
    fast, _ = recorded(model)
    for size in [(48, 85), (85, 48), (48, 85)]:
        fast.reset()
        plain = StreamingSegmenter(model, transform=TRANSFORM)
        for frame in video(8, *size):
            assert torch.equal(fast.step(frame), plain.step(frame))


def test_a_finished_video_is_freed() -> None:
    stream = StreamingSegmenter(tiny_model("mrcfa_b0"), transform=TRANSFORM)
    stream.step(video(1, 48, 85)[0])
    assert len(rings(stream)) == 1
    stream.reset()
    assert rings(stream) == []


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@NAMES
@torch.no_grad()
def test_prepared_weights_give_the_same_bits(name: str, half: bool) -> None:
    model = tiny_model(name)
    prepared = PreparedModel(model, torch.bfloat16 if half else None)
    images = torch.randn(4, 1, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
        for change in (1.0, 0.9):
            addresses = [p.data_ptr() for p in prepared.model.parameters()]
            for parameter in model.parameters():
                parameter.mul_(change)
            prepared.refresh()
            assert [p.data_ptr() for p in prepared.model.parameters()] == addresses
            results = []
            for either in (model, prepared.model):
                *references, target = (either.encode_frame(image) for image in images)
                results.append(either.head.classify_frame(target))
                if model.num_references:
                    kept = [frame.reference for frame in references]
                    results.append(either.decode(target, kept))
            half_way = len(results) // 2
            for want, have in zip(results[:half_way], results[half_way:], strict=True):
                assert torch.equal(have, want)


def test_weights_are_shared_or_narrow() -> None:
    """Where nothing need be narrowed, only what is computed from weights takes memory."""
    model = tiny_model("cffm_b0")
    own = {p.data_ptr() for p in model.parameters()}
    wide = [p for p in PreparedModel(model).model.parameters() if p.data_ptr() not in own]
    assert all(p.dim() == 4 and p.shape[-1] > 1 for p in wide)  # reducing convolutions, reordered
    narrow = PreparedModel(model, torch.bfloat16).model
    assert narrow.head.target_classifier.weight.dtype == torch.bfloat16
    assert narrow.head.fusion.mix.weight.dtype == torch.float32
    assert model.head.target_classifier.weight.dtype == torch.float32


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_ring(order: tuple[int, ...]) -> None:
    states = [(torch.randn(2, 3, 4, 5).permute(order), torch.randn(2, 6)) for _ in range(7)]
    ring = FrameRing(states[0], 4)
    for number, state in enumerate(states):
        if number >= 4:
            places = torch.tensor([(number - 4) % 4, (number - 1) % 4])
            maps, rows = ring.read(ring.buffers, places)
            for position, earlier in enumerate((states[number - 4], states[number - 1])):
                assert torch.equal(maps[:, position], earlier[0])
                assert torch.equal(rows[:, position], earlier[1])
            assert maps[:, 0].stride()[1:] == state[0].stride()[1:]
        ring.write(ring.buffers, torch.tensor([number % 4]), state)


DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
def test_upload(dtype: torch.dtype, device: torch.device) -> None:
    """Each frame arrives though the next is on its way, at one address, with its places."""
    frames = (torch.rand(6, 2, 5, 7, 3) * 255).to(dtype)
    upload = FrameUpload(frames[0], 4, device)
    address = upload.frames.data_ptr()
    arrived = []
    for number, frame in enumerate(frames):
        given = frame.clone()
        upload(given.to(device) if number % 2 else given, [number, 9, 8, 7])
        given.zero_()
        arrived.append((upload.frames.clone(), upload.places.clone()))
    assert upload.frames.data_ptr() == address
    for number, (frame, places) in enumerate(arrived):
        assert torch.equal(frame.cpu(), frames[number])
        assert places.tolist() == [number, 9, 8, 7]


def test_another_class_of_transform_stays_in_charge() -> None:
    class Darker(EvaluationTransform):
        def __call__(self, clip: torch.Tensor) -> torch.Tensor:
            return super().__call__(clip // 2)

    program = FrameProgram(tiny_model("mrcfa_b0"), Darker((85, 48)), 9, capture=RecordedCalls())
    assert not program.takes_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
@NAMES
@torch.no_grad()
def test_labels_of_a_replay_are_those_of_the_clip(name: str, batch: int) -> None:
    model = tiny_model(name).cuda()
    stream = StreamingSegmenter(model, transform=TRANSFORM, compile=CUDA_GRAPH)
    frames = np.stack([video(16, 48, 85, seed) for seed in range(batch)], axis=1)
    labels = [stream.step(frame) for frame in frames][-1]
    clip = torch.stack(
        [TRANSFORM(torch.from_numpy(frames[t]).permute(0, 3, 1, 2)) for t in (6, 9, 12, 15)], 1
    ).cuda()
    through = (clip.shape[-2], clip.shape[-1])
    expected = upsample_argmax(model(clip), (48, 85), through=through)
    assert (labels != expected).float().mean() < 1e-3
