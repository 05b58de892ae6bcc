"""timm models as encoders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from vss_models import CheckpointError, create_model, load_model, save_model
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


def test_features_are_channels_first_whatever_timm_returns() -> None:
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


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("pvt_v2_b0", {"checkpoint_path": "evil.pt"}, "must not name checkpoint_path"),
        ("pvt_v2_b0", {"pretrained_cfg": {"file": "evil.pt"}}, "must not name pretrained_cfg"),
        ("pvt_v2_b0", {"pretrained_cfg_overlay": {"url": "x"}}, "name pretrained_cfg_overlay"),
        ("pvt_v2_b0", {"cache_dir": "/tmp"}, "must not name cache_dir"),
        ("local-dir:FOLDER", {}, "not a timm model"),
        ("hf-hub:evil/model", {}, "not a timm model"),
    ],
)
def test_a_model_file_cannot_name_files_to_load(
    tmp_path: Path, backbone: str, options: dict[str, Any], message: str
) -> None:
    """timm would read them, older versions by running the code they hold."""

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Code(), tmp_path / "evil.pt")
    if "checkpoint_path" in options:
        options = {"checkpoint_path": str(tmp_path / "evil.pt")}
    save_model(create_model("segformer_b0", 3, backbone="pvt_v2_b0", **HEAD), tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["overrides"] = {
        "backbone": backbone.replace("FOLDER", str(tmp_path)),
        "backbone_options": options,
        **HEAD,
    }
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_an_option_that_is_not_of_the_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must not name checkpoint_path, scriptable; they are"):
        TimmBackbone("pvt_v2_b0", {"scriptable": True, "checkpoint_path": "x", "drop_rate": 0.1})
