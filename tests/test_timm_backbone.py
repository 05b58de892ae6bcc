"""timm models as encoders."""

from __future__ import annotations

import pytest
import torch

from vss_models import create_model
from vss_models.backbones import TimmBackbone

timm = pytest.importorskip("timm")

HEAD = {"embed_dim": 32}


@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "resnet10t", "mobilenetv3_small_050"])
def test_features_are_timms_last_four_levels(backbone: str) -> None:
    encoder = TimmBackbone(backbone).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = encoder(images)
        expected = encoder.encoder(images)[-4:]
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    assert [tuple(f.shape) for f in features] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, (4, 8, 16, 32), strict=True)
    ]


def test_channels_last_models_are_turned() -> None:
    encoder = TimmBackbone("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [
        (96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["mrcfa", "cffm", "segformer"])
def test_every_head_takes_a_timm_backbone(family: str) -> None:
    model = create_model(f"{family}_b1", num_classes=5, backbone="pvt_v2_b0", **HEAD).eval()
    clip = torch.randn(1, 4, 3, 64, 96)
    with torch.no_grad():
        logits = model(clip)
    assert logits.shape == (1, 5, 16, 24)
    assert logits.isfinite().all()


def test_options_reach_timm() -> None:
    model = create_model(
        "segformer_b0", 3, backbone="pvt_v2_b0", backbone_options={"drop_path_rate": 0.3}, **HEAD
    )
    rates = {m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"}
    assert max(rates) == pytest.approx(0.3)


def test_other_strides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(16, 16, 16\).*\(4, 8, 16, 32\)"):
        create_model("segformer_b0", 3, backbone="vit_tiny_patch16_224")


def test_unknown_name_gets_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"not a timm model; similar names: .*pvt_v2_b0"):
        create_model("segformer_b0", 3, backbone="pvt_v3_b1")


def test_mit_settings_with_a_timm_backbone_are_refused() -> None:
    with pytest.raises(ValueError, match="depths are settings of the MiT encoder"):
        create_model("segformer_b0", 3, backbone="pvt_v2_b0", depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="backbone_options needs backbone"):
        create_model("segformer_b0", 3, backbone_options={"pretrained": True})
