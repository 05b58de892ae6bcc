"""Precision and compilation of streaming: the same results, without a graph break."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.support.tiny_streaming import TRANSFORM, kept_bytes, rings, tiny_model, video
from vss_kernels._runtime import cpu_inference
from vss_models.inference.frame_program import FrameProgram
from vss_models.inference.graphs import MOST_SIZES
from vss_models.inference.streaming import StreamingSegmenter

NAMES = ["mrcfa_b0", "cffm_b0"]


def tensors(stream: StreamingSegmenter) -> list[torch.Tensor]:
    """What was kept of all frames."""
    return [buffer for ring in rings(stream) for buffer in ring.buffers]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def _what_a_compiler_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled code leaves out the CPU's own ways in inference, too.

    A compiler is never given them, and they round differently.
    """
    monkeypatch.setattr(cpu_inference, "is_cpu_inference", lambda *_: False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_is_the_same(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two graphs, for frames with and without references, serve the whole video unbroken."""
    counter = CompileCounter()
    compile_with = torch.compile

    def compile_and_count(function, **settings):  # type: ignore[no-untyped-def]
        assert settings["backend"] == "eager"
        assert settings["fullgraph"]
        return compile_with(function, **{**settings, "backend": counter})

    model = tiny_model(name)
    plain = StreamingSegmenter(model, transform=TRANSFORM, precision=precision)
    monkeypatch.setattr(torch, "compile", compile_and_count)
    compiled = StreamingSegmenter(
        model, transform=TRANSFORM, precision=precision, compile="eager", frame_size=(48, 85)
    )
    assert counter.frame_count == 2
    assert compiled.num_frames == 0
    for frame in video(11, 48, 85):
        assert torch.equal(compiled.step(frame), plain.step(frame))
        for have, want in zip(tensors(compiled), tensors(plain), strict=True):
            assert torch.equal(have, want)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bfloat16_is_the_clip_path_in_bfloat16(name: str) -> None:
    model = tiny_model(name)
    images = TRANSFORM(torch.from_numpy(video(11, 48, 85)).permute(0, 3, 1, 2))
    wide, narrow = (
        StreamingSegmenter(model, precision=precision) for precision in ("float32", "bfloat16")
    )
    for image in images:
        exact, logits = wide.step_logits(image[None]), narrow.step_logits(image[None])
    assert logits.dtype == torch.bfloat16
    assert kept_bytes(narrow) * 2 == kept_bytes(wide)
    with torch.autocast("cpu", torch.bfloat16):
        clip = model(images[[1, 4, 7, 10]][None])
    largest = exact.abs().max()
    assert (logits - clip).abs().max() <= 2**-7 * largest
    assert (logits - exact).abs().max() > 0


def test_further_sizes_run_uncompiled_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The ninth size of PyTorch's eight used to end in an error."""
    model = tiny_model("segformer_b0")
    program = FrameProgram(model, TRANSFORM, 0, compile="eager")
    plain = FrameProgram(model, TRANSFORM, 0)
    for width in range(32, 32 * (MOST_SIZES + 3), 32):
        images = torch.randn(1, 3, 32, width)
        assert torch.equal(program(images, [0]), plain(images, [0]))
    (record,) = (r for r in caplog.records if r.name == "vss_models")
    assert f"more than {MOST_SIZES} sizes" in record.getMessage()


def test_automatic_compilation_is_for_gpus() -> None:
    program = FrameProgram(tiny_model("mrcfa_b0"), TRANSFORM, 9, compile="auto")
    assert not program.is_compiled
    assert not program.replays
    # And it is the one that does without a compiler where there is none.
    assert program._alone.falls_back
    assert program._related.falls_back
    assert not FrameProgram(tiny_model("mrcfa_b0"), TRANSFORM, 9, compile="eager")._alone.falls_back


def test_bad_settings_are_named() -> None:
    model = tiny_model("mrcfa_b0")
    with pytest.raises(ValueError, match=r"precision must be one of .*, got 'float16'"):
        StreamingSegmenter(model, precision="float16")
    with pytest.raises(ValueError, match=r"compile must be None.*inductor.*, got 'fast'"):
        FrameProgram(model, TRANSFORM, 9, compile="fast")
    with pytest.raises(ValueError, match="needs the model on a CUDA device"):
        FrameProgram(model, TRANSFORM, 9, compile="cuda-graph")


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["inductor", "cuda-graph"])
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name: str, how: str) -> None:
    """A kept state is not overwritten by the replay of a later frame."""
    model = tiny_model(name).cuda()
    plain = StreamingSegmenter(model, transform=TRANSFORM)
    fast = StreamingSegmenter(model, transform=TRANSFORM, compile=how, frame_size=(48, 85))
    for frame in video(20, 48, 85):
        images = TRANSFORM(torch.from_numpy(frame).permute(2, 0, 1)[None]).cuda()
        want = plain.step_logits(images)
        assert (fast.step_logits(images) - want).abs().max() <= 1e-4 * want.abs().max()
