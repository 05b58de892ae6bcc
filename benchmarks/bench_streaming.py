"""Labels of one more frame of a video, B1 models at 480x853: by streaming, and from its clip.

The baseline, "eager", is clip prediction with the published programs' arithmetic: for every frame
the clip's four frames pass the encoder as one batch, features are concatenated before they are
mixed, and two resizes and argmax make labels of the logits, all on eager operators. "clip" is
``model(clip)`` as it runs by default, on the operators that are chosen here. All of these begin
with a normalised frame on the device; "from bytes" begins with a camera's frame on the host.
"onnxruntime" runs the step that ``vss export --streaming`` writes, with as many threads, and makes
labels of its logits by `upsample_argmax`; it also gives the logits of the frame on its own. On a
CPU all keep the memory that they free, as ``vss segment`` does.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools

import pytest
import torch

from benchmarks.harness import (
    DEVICE,
    DRY_RUN,
    ON_GPU,
    ROUNDS,
    fresh_graph_pools,
    implementation_of,
    record,
)
from tests.support.memory import MIB
from vss_kernels import upsample_argmax
from vss_models import create_model
from vss_models.data import EvaluationTransform
from vss_models.host_memory import keep_freed_memory
from vss_models.inference.export import export_model, state_tensors
from vss_models.inference.streaming import StreamingSegmenter

CLASSES = 124
SIZE, NETWORK_SIZE = ((60, 50), (64, 64)) if DRY_RUN else ((480, 853), (480, 864))
MODELS = ("mrcfa_b0", "cffm_b0") if DRY_RUN else ("mrcfa_b1", "cffm_b1")
SETTINGS = {"streaming eager": {}, "streaming": {}, "streaming from bytes": {}}
if ON_GPU:
    SETTINGS["streaming compiled"] = {"compile": "inductor"}
    SETTINGS["streaming cuda-graph"] = {"compile": "cuda-graph"}
    SETTINGS["streaming from bytes cuda-graph"] = {"compile": "cuda-graph"}
    reduced_graph = {"compile": "cuda-graph", "precision": "bfloat16"}
    SETTINGS["streaming bfloat16 cuda-graph"] = reduced_graph
    SETTINGS["streaming from bytes bfloat16 cuda-graph"] = reduced_graph
else:
    SETTINGS["streaming bfloat16"] = {"precision": "bfloat16"}
PEERS = [] if ON_GPU or importlib.util.find_spec("onnxruntime") is None else ["onnxruntime"]


@pytest.fixture(scope="module", autouse=True)
def memory_as_in_commands():
    """All implementations run as in ``vss segment``, and later benchmarks as in any process."""
    keep_freed_memory()
    yield
    keep_freed_memory(most=64 * MIB)


def make_model(name, fusion):
    torch.manual_seed(0)
    return create_model(name, CLASSES, fusion=fusion).to(DEVICE).eval()


@torch.inference_mode()
def clip_labels(model, clip):
    return upsample_argmax(model(clip), SIZE, through=NETWORK_SIZE)


def exported_step(model, frames, folder):
    """Returns a call of onnxruntime that maps the last frame to logits."""
    import onnxruntime

    written = export_model(model, folder / "step.onnx", NETWORK_SIZE, streaming=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        written.path, options, providers=["CPUExecutionProvider"]
    )
    states = [
        state_tensors(model.encode_frame(frame).reference).values() for frame in frames[[0, 3, 6]]
    ]
    tensors = [frames[-1], *itertools.chain.from_iterable(states)]
    inputs = dict(zip(written.inputs, (t.contiguous().numpy() for t in tensors), strict=True))

    def run():
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


@pytest.mark.parametrize("implementation", ["eager", "clip", *SETTINGS, *PEERS])
@pytest.mark.parametrize("name", MODELS)
def bench_streaming(name, implementation, benchmark, tmp_path):
    pools_before = fresh_graph_pools()
    torch.manual_seed(1)
    frames = torch.randn(10, 1, 3, *NETWORK_SIZE, device=DEVICE)
    clip = frames[[0, 3, 6, 9]].transpose(0, 1).contiguous()
    baseline = make_model(name, "concatenate")
    baseline.encode_together = True
    model = baseline if implementation == "eager" else make_model(name, "projected")
    reduced = "bfloat16" in implementation
    with implementation_of((), "eager"), torch.inference_mode():
        expected = baseline(clip)
    with implementation_of((), "eager" if implementation.endswith("eager") else "fused"):
        with torch.inference_mode():
            if implementation in SETTINGS:
                settings = {} if DRY_RUN else SETTINGS[implementation]
                stream = StreamingSegmenter(model, transform=EvaluationTransform(None), **settings)
                logits = [stream.step_logits(frame) for frame in frames][-1]
                frame = frames[-1]
                if "from bytes" in implementation:
                    frame = torch.randint(256, (*SIZE, 3), dtype=torch.uint8)
                    stream.reset()
                    for _ in frames:
                        stream.step(frame)
                run = functools.partial(stream.step, frame, SIZE)
            elif implementation == "onnxruntime":
                step = exported_step(model, frames, tmp_path)
                logits = step()

                def run():
                    return upsample_argmax(step(), SIZE, through=NETWORK_SIZE)
            else:
                logits = model(clip)
                run = functools.partial(clip_labels, model, clip)
        allowed = 2**-6 if reduced else 1e-4
        assert (logits - expected).abs().max() <= allowed * expected.abs().max()
        run()
        record(
            benchmark,
            run,
            operator="streaming",
            case=f"{name} {SIZE[0]}x{SIZE[1]}",
            dtype=torch.float32,  # of the frames
            mode="forward",
            implementation=implementation,
            # A clip takes seconds on a CPU.
            rounds=ROUNDS if ON_GPU else 5,
            pools_before=pools_before,
            is_pytorch=implementation not in PEERS,
        )
