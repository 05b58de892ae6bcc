"""A fine-tuning step of other people's SegFormer, before and after vss_kernels.patch.

SegFormer-B0 of transformers, whose model computes the loss, and of segmentation_models_pytorch,
where the loss is computed outside. Forward, loss, backward and AdamW. The baseline, "eager", is the
model as its library makes it. Skipped by name where a library is not installed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vss_kernels
from benchmarks.harness import DEVICE, ON_GPU, on_machine, record

CLASSES = 150
IMAGES, SIDE = on_machine(gpu=(8, 512), cpu=(1, 256), dry_run=(1, 64))
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
# How far the loss may be from that of the model as it was, relative to it.
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2**-7}

Loss = Callable[[Tensor, Tensor], Tensor]


def from_transformers() -> tuple[nn.Module, Loss]:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=CLASSES, drop_path_rate=0.0, classifier_dropout_prob=0.0
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    return model, lambda images, labels: model(images, labels=labels).loss


def from_segmentation_models() -> tuple[nn.Module, Loss]:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Segformer("mit_b0", encoder_weights=None, classes=CLASSES)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model, lambda images, labels: F.cross_entropy(model(images), labels, ignore_index=255)


LIBRARIES = {
    "transformers": from_transformers,
    "segmentation_models_pytorch": from_segmentation_models,
}


@pytest.mark.parametrize("implementation", ["eager", "patched"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
def bench_patch(library, dtype, implementation, benchmark):
    torch.manual_seed(0)
    model, loss = LIBRARIES[library]()
    model.to(DEVICE).train()
    images = torch.randn(IMAGES, 3, SIDE, SIDE, device=DEVICE)
    labels = torch.randint(CLASSES, (IMAGES, SIDE, SIDE), device=DEVICE)
    labels[:, : SIDE // 8] = 255
    if library == "transformers":
        labels = labels.masked_fill(labels == 255, model.config.semantic_loss_ignore_index)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-5)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(images, labels)
        value.backward()
        optimizer.step()
        return value.detach().clone()

    with torch.no_grad():
        expected = loss(images, labels)
    if implementation == "patched":
        vss_kernels.patch(model)
    assert (step() - expected).abs() <= ALLOWED[dtype] * expected
    record(
        benchmark,
        step,
        operator="patch",
        case=f"SegFormer-B0 of {library}, {IMAGES}x{SIDE}x{SIDE}, {CLASSES} classes",
        dtype=dtype,
        mode="forward+backward",
        implementation=implementation,
    )
