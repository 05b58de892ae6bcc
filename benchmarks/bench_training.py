"""One training step of the whole model: forward, loss and backward of a batch of clips.

On a GPU the B1 models on two clips of 4 x 480 x 480 pixels; on a CPU B0 on one clip of 4 x 128 x
128. The baseline, "eager", is the published programs' arithmetic: eager operators, features
concatenated before they are mixed, and a loss on float32 logits at full size.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.harness import (
    DEVICE,
    DRY_RUN,
    ON_GPU,
    fresh_graph_pools,
    implementation_of,
    on_machine,
    record,
)
from tests.support.memory import MIB
from vss_models import create_model
from vss_models.backbones import MixTransformer
from vss_models.inference.compile import CUDA_GRAPH, compiled
from vss_models.inference.graphs import CALLS_BEFORE_CAPTURE
from vss_models.losses import ClipLoss
from vss_models.training.step import TrainingStep

CLASSES = 124
MODELS = ("mrcfa_b1", "cffm_b1") if DEVICE == "cuda" else ("mrcfa_b0", "cffm_b0")
CLIPS, SIDE = on_machine(gpu=(2, 480), cpu=(1, 128), dry_run=(1, 64))
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
# "eager projected" multiplies the fusion's matrices first; "fused" is what runs by default, then
# by how it is compiled. "cuda-graph" is the step of `vss fit` on a GPU: one graph, forward to
# gradients.
REPLAYS = ["fused cuda-graph"] if ON_GPU else []
IMPLEMENTATIONS = ["eager", "eager projected", "fused", "fused inductor", *REPLAYS]
# How far the loss may be from the baseline's in float32, relative to it.
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def without_dropout(model: nn.Module) -> None:
    """Lets the check compare losses: compiled code draws other random numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
        elif isinstance(module, MixTransformer):
            module.set_drop_path(0.0)


def make_step(name, fusion, dtype, how, clip, labels):
    """Returns a function that runs one step of a new model and returns its loss."""
    torch.manual_seed(0)
    model = create_model(name, CLASSES, fusion=fusion).to(DEVICE).train()
    without_dropout(model)
    loss = ClipLoss()
    if how == CUDA_GRAPH:
        return recorded_step(model, loss, dtype, clip, labels)

    def forward():
        return loss(model(clip), labels)

    call = compiled(forward, how) if how and not DRY_RUN else forward

    def step():
        model.zero_grad(set_to_none=True)
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = call()
        value.backward()
        return value.detach().clone()

    return step


def recorded_step(model, loss, dtype, clip, labels):
    """As `make_step`: what `vss fit` runs and replays, once it has been recorded."""
    run = TrainingStep(model, loss, None if DRY_RUN else CUDA_GRAPH)

    def step():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return run(clip, labels)[1].clone()

    for _ in range(CALLS_BEFORE_CAPTURE + 1):
        step()
    return step


def kept_memory(model_name, how, clip, labels):
    """MiB that stay: gradients and copies of the batch, where a recording has their addresses."""
    if how != CUDA_GRAPH:
        return 0.0
    model = create_model(model_name, CLASSES)
    tensors = [clip, labels, *model.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def bench_training_step(name, dtype, implementation, benchmark):
    pools_before = fresh_graph_pools()
    torch.manual_seed(1)
    clip = torch.randn(CLIPS, 4, 3, SIDE, SIDE, device=DEVICE)
    labels = torch.randint(CLASSES, (CLIPS, 4, SIDE, SIDE), dtype=torch.uint8, device=DEVICE)
    labels[..., :8] = 255
    with implementation_of((), "eager"):
        expected = make_step(name, "concatenate", torch.float32, None, clip, labels)()
    operators, _, extra = implementation.partition(" ")
    with implementation_of((), operators):
        fusion = "concatenate" if implementation == "eager" else "projected"
        how = None if operators == "eager" else extra or None
        step = make_step(name, fusion, dtype, how, clip, labels)
        assert (step() - expected).abs() <= ALLOWED[dtype] * expected
        record(
            benchmark,
            step,
            operator="training step",
            case=f"{name} {CLIPS}x4x{SIDE}x{SIDE}",
            dtype=dtype,
            mode="forward+backward",
            implementation=implementation,
            pools_before=pools_before,
            kept=kept_memory(name, how, clip, labels),
        )
