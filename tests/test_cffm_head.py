"""The CFFM head at frame sizes whose 1/4 grid has an odd side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_streaming import tiny_model, video
from vss_models import VideoSegmentor
from vss_models.data import evaluation_references
from vss_models.data.transforms import normalise
from vss_models.inference.export import export_model
from vss_models.inference.streaming import StreamingSegmenter

ODD_SIZE = (72, 108)
"""Height and width with a 1/4 grid of 18 x 27 and an encoder's 1/8 grid of 9 x 14."""


def frames(count: int, size: tuple[int, int]) -> torch.Tensor:
    return normalise(torch.from_numpy(video(count, *size)).permute(0, 3, 1, 2) / 255)


def by_definition(model: VideoSegmentor, clip: torch.Tensor) -> torch.Tensor:
    """Returns the logits of one clip (4, 3, H, W), with the fused features halved rounding down."""
    head = model.head
    fused = head.fusion(model.backbone(clip))
    height, width = fused.shape[-2:]
    halved = F.interpolate(fused, size=(height // 2, width // 2), mode="bilinear")
    maps = halved.permute(0, 2, 3, 1)
    refined = maps[-1:]
    for block in head.blocks:
        refined = block(refined, maps[None, :-1])
    both = torch.cat([halved[-1:], refined.permute(0, 3, 1, 2)], dim=1)
    return F.interpolate(head.target_classifier(both), size=(height, width), mode="bilinear")


@pytest.mark.parametrize("size", [ODD_SIZE, (100, 64), (64, 96)])
@torch.no_grad()
def test_grid_of_the_blocks_is_half_the_fused_one_rounded_down(size: tuple[int, int]) -> None:
    model = tiny_model("cffm_b1").double()
    grids = []
    model.head.blocks[0].register_forward_hook(
        lambda block, inputs, output: grids.append(tuple(output.shape[1:3]))
    )
    clip = frames(4, size).double()
    logits = model(clip[None])
    assert grids == [(size[0] // 4 // 2, size[1] // 4 // 2)]
    expected = by_definition(model, clip)
    assert (logits - expected).abs().max() <= 1e-11 * expected.abs().max()
    model.train()
    model.backbone.eval()
    model.head.fusion.eval()
    model.head.dropout.eval()
    in_training = model(clip[None]).target[:, 0]
    assert (in_training - expected).abs().max() <= 1e-11 * expected.abs().max()


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
@torch.no_grad()
def test_streaming_and_exported_programs_use_the_same_grid(tmp_path: Path, suffix: str) -> None:
    offsets = (-3, -2, -1)
    model = tiny_model("cffm_b0")
    images = frames(5, ODD_SIZE)
    stream = StreamingSegmenter(model, offsets)
    logits = [stream.step_logits(image[None]) for image in images]
    clip = images[[*evaluation_references(4, offsets), 4]]
    assert torch.equal(logits[4], model(clip[None]))
    expected = by_definition(model, clip)
    assert (logits[4] - expected).abs().max() <= 1e-5 * expected.abs().max()

    states = [model.encode_frame(image[None]).reference for image in clip[:-1]]
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        written = export_model(model, tmp_path / "step.onnx", ODD_SIZE, streaming=True)
        session = onnxruntime.InferenceSession(str(written.path))
        inputs = [clip[-1:].numpy(), *(np.ascontiguousarray(state.numpy()) for state in states)]
        names = [entry.name for entry in session.get_inputs()]
        exported = torch.from_numpy(session.run(None, dict(zip(names, inputs, strict=True)))[0])
    else:
        written = export_model(model, tmp_path / "step.pt2", ODD_SIZE, streaming=True)
        exported = torch.export.load(written.path).module()(clip[-1:], *states)[0]
    assert (exported - expected).abs().max() <= 2e-5 * expected.abs().max()
