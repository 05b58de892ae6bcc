"""Labels of one more frame of a video: by streaming, and from its clip as `model(clip)` does it.

On a GPU the B1 models at 480x853; on a CPU B0 at 128x224, small enough for any machine.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.harness import DEVICE, ROUNDS, implementation_of, peak_memory, timer
from vss_kernels import upsample_argmax
from vss_models import create_model
from vss_models.streaming import StreamingSegmenter

SIZE, NETWORK_SIZE = ((480, 853), (480, 864)) if DEVICE == "cuda" else ((128, 213), (128, 224))
# "eager" is clip prediction on eager operators, which everything is compared with; "clip" is it on
# those that are chosen here, as is all that does not say eager.
MODELS = ("mrcfa_b1", "cffm_b1") if DEVICE == "cuda" else ("mrcfa_b0", "cffm_b0")
SETTINGS = {"streaming": {}, "streaming compiled": {"compile": "inductor"}}
if DEVICE == "cuda":
    SETTINGS["streaming cuda-graph"] = {"compile": "cuda-graph"}
    SETTINGS["streaming bfloat16 cuda-graph"] = {"compile": "cuda-graph", "precision": "bfloat16"}


@torch.inference_mode()
def clip_labels(model, clip):
    return upsample_argmax(model(clip), SIZE, through=NETWORK_SIZE)


@pytest.mark.parametrize("implementation", ["eager", "clip", "streaming eager", *SETTINGS])
@pytest.mark.parametrize("name", MODELS)
def bench_streaming(name, implementation, benchmark):
    torch.manual_seed(0)
    model = create_model(name, 124).to(DEVICE).eval()
    frames = torch.randn(10, 1, 3, *NETWORK_SIZE, device=DEVICE)
    clip = frames[[0, 3, 6, 9]].transpose(0, 1).contiguous()
    reduced = "bfloat16" in implementation
    with implementation_of((), "eager" if implementation.endswith("eager") else "fused"):
        if implementation in ("eager", "clip"):
            run = functools.partial(clip_labels, model, clip)
        else:
            stream = StreamingSegmenter(model, **SETTINGS.get(implementation, {}))
            with torch.inference_mode():
                for frame in frames:
                    logits = stream.step_logits(frame)
                with torch.autocast(DEVICE, torch.bfloat16, enabled=reduced):
                    exact = model(clip)
            allowed = 2**-6 if reduced else 1e-4
            assert (logits - exact).abs().max() <= allowed * exact.abs().max()
            run = functools.partial(stream.step, frames[-1], SIZE)
        run()
        height, width = SIZE
        benchmark._timer = timer
        benchmark.group = f"streaming {name} {height}x{width}"
        benchmark.extra_info.update(
            operator="streaming",
            case=f"{name} {height}x{width}",
            dtype="bfloat16" if reduced else "float32",
            mode="forward",
            implementation=implementation,
            peak_mib=peak_memory(run),
        )
        benchmark.pedantic(run, rounds=ROUNDS, iterations=1, warmup_rounds=3)
