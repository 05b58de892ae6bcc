"""Weights in and out: every published key both ways, reports, refusals, our own checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vss_models import TrainedOn, VideoSegmentor, create_model
from vss_models.checkpoints import (
    CheckpointError,
    load_backbone,
    load_model,
    load_released,
    open_model,
    save_model,
    save_released,
    to_released,
)
from vss_models.checkpoints.key_map import NO_CONTENT, backbone_layouts, released_names

KEYS = Path(__file__).parent / "golden" / "checkpoint_keys"
UNUSED_CLASSIFIER = 15_996
MILLIONS = {"mrcfa": {"b0": 5.30, "b1": 16.34, "b2": 27.38, "b5": 84.63},
            "cffm": {"b0": 4.67, "b1": 15.48, "b2": 26.53, "b5": 85.47}}  # fmt: skip
SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 32}


def small(name: str = "mrcfa_b1", num_classes: int = 5, **overrides: object) -> VideoSegmentor:
    return create_model(name, num_classes, **{**SMALL, **overrides})


def scramble(model: VideoSegmentor) -> VideoSegmentor:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    return model


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.parametrize("family", ["mrcfa", "cffm"])
@pytest.mark.parametrize("size", ["b0", "b1", "b2", "b5"])
def test_every_released_key_maps_both_ways(family: str, size: str) -> None:
    published = json.loads((KEYS / f"{family}_{size}.json").read_text())
    with torch.device("meta"):
        model = create_model(f"{family}_{size}", num_classes=124)
    state = model.state_dict()
    names = released_names(list(state))
    back = {theirs: ours for ours, (theirs,) in names.items()}
    assert len(back) == len(state), "two of our keys share a released name"
    carrying = {key: tuple(shape) for key, shape in published.items() if not NO_CONTENT.search(key)}
    assert {theirs: tuple(state[ours].shape) for theirs, ours in back.items()} == carrying


@pytest.mark.parametrize(("family", "size"), [(f, s) for f in MILLIONS for s in MILLIONS[f]])
def test_parameter_counts_are_the_published_ones(family: str, size: str) -> None:
    with torch.device("meta"):
        model = create_model(f"{family}_{size}", num_classes=124)
    count = sum(p.numel() for p in model.parameters()) + UNUSED_CLASSIFIER
    assert round(count / 1e6, 2) == MILLIONS[family][size]


@pytest.mark.parametrize("name", ["mrcfa_b1", "mrcfa_b0", "cffm_b1", "segformer_b0"])
def test_released_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    source = scramble(small(name))
    save_released(source, tmp_path / "released.pth")
    copy = small(name)
    report = load_released(copy, tmp_path / "released.pth")
    assert report.complete
    assert len(report.used) == len(source.state_dict())
    assert_same(source.state_dict(), copy.state_dict())


def test_plain_dict_and_keys_without_content(tmp_path: Path) -> None:
    source = scramble(small())
    state = to_released(source)
    state["decode_head.conv_seg.weight"] = torch.zeros(5, 128, 1, 1)
    torch.save(state, tmp_path / "plain.pth")
    report = load_released(copy := small(), tmp_path / "plain.pth", verbose=False)
    assert report.complete
    assert report.ignored == ("decode_head.conv_seg.weight",)
    assert_same(source.state_dict(), copy.state_dict())


def test_report_names_every_deviation_of_the_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = to_released(scramble(small(num_classes=7)))
    del state["decode_head.sr2.bias"]
    state["decode_head.decoder_swin.blocks.0.attn.qkv.weight"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    model = small(num_classes=5)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"not the model's; .*strict=False(.|\n)*missing: dec"
    ):
        load_released(model, tmp_path / "other.pth")
    assert_same(before, model.state_dict())
    report = load_released(model, tmp_path / "other.pth", strict=False)
    printed = capsys.readouterr().out
    assert report.missing == ("decode_head.sr2.bias",)
    assert report.unexpected == ("decode_head.decoder_swin.blocks.0.attn.qkv.weight",)
    # The per-frame classifier and four decoders, weight and bias each.
    assert len(report.wrong_shape) == 10
    assert not report.complete
    for line in (
        "missing: decode_head.sr2.bias",
        "unexpected: decode_head.decoder_swin.blocks.0.attn.qkv.weight",
        "wrong shape: decode_head.linear_pred.weight: file (7, 32, 1, 1), model (5, 32, 1, 1)",
    ):
        assert line in printed
    after = model.state_dict()
    classifiers = {key for key in after if after[key].shape[:1] == (5,)}
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    counters = {key for key in after if key.endswith("num_batches_tracked")}
    assert changed == set(after) - classifiers - counters - {"head.reference_reductions.0.bias"}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("CFFM", "mrcfa_b1"),
        ("MRCFA", "cffm_b1"),
        ("MRCFA", "segformer_b1"),
        ("SegFormer", "cffm_b1"),
    ],
)
def test_another_methods_head_is_refused(tmp_path: Path, family: str, name: str) -> None:
    save_released(small(f"{family.lower()}_b1"), tmp_path / "released.pth")
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"a head of {family} that is not the model's"):
        load_released(model, tmp_path / "released.pth")
    assert_same(before, model.state_dict())
    report = load_released(model, tmp_path / "released.pth", strict=False, verbose=False)
    assert report.missing or report.unexpected
    with pytest.raises(CheckpointError, match=f"is of {family}, not of {name}"):
        open_model(tmp_path / "released.pth", name)


def test_a_cffmpp_file_is_named_and_refused(tmp_path: Path) -> None:
    source = scramble(small("cffm_b1"))
    state = to_released(source)
    state["decode_head.linear_pred3.weight"] = torch.zeros(5, 32, 1, 1)
    state["decode_head.decoder_swin.blocks.0.norm1.weight"] = torch.zeros(32)
    path = tmp_path / "cffmpp.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(
        CheckpointError, match=r"cffmpp\.pth is of CFFM\+\+, a model that this prog"
    ):
        open_model(path, "cffm_b1")
    with pytest.raises(CheckpointError, match=r"a head of CFFM\+\+ that is not the model's"):
        load_released(small("cffm_b1"), path)
    # What is CFFM's in it can be asked for.
    model = small("cffm_b1")
    report = load_released(model, path, strict=False, verbose=False)
    assert len(report.unexpected) == 2
    assert_same(model.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    "overrides", [{"dims": (16, 16, 40, 64)}, {"depths": (1, 1, 2, 1)}, {"depths": (1, 1, 1, 2)}]
)
@pytest.mark.parametrize("swap", [False, True])
def test_backbone_mismatch_is_refused(tmp_path: Path, overrides: dict, swap: bool) -> None:
    pair = [small(), small(**overrides)]
    source, model = pair[::-1] if swap else pair
    save_released(source, tmp_path / "released.pth")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"not the model's\n.*keys used(.|\n)*backbone\."):
        load_released(model, tmp_path / "released.pth")
    assert_same(before, model.state_dict())


def encoder_file(model: VideoSegmentor, layout: str) -> dict[str, Tensor]:
    """Returns the encoder's weights under the names of a published layout."""
    names = backbone_layouts(list(model.backbone.state_dict()))[layout]
    state = model.backbone.state_dict()
    out = {}
    for ours, theirs in names.items():
        for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            out[name] = part.clone()
    return out


@pytest.mark.parametrize(
    "layout",
    ["ImageNet", "released", "segmentation_models_pytorch", "Hugging Face", "Hugging Face encoder"],
)
def test_backbone_layouts_round_trip(layout: str, tmp_path: Path) -> None:
    source = scramble(small())
    state = encoder_file(source, layout)
    state["head.weight"] = torch.zeros(1000, 64)
    torch.save(state, tmp_path / "encoder.pth")
    model = small("segformer_b1")
    head_before = {k: v.clone() for k, v in model.head.state_dict().items()}
    report = load_backbone(model, tmp_path / "encoder.pth")
    assert report.complete
    assert report.ignored == ("head.weight",)
    assert f"({layout} layout)" in str(report)
    assert_same(source.backbone.state_dict(), model.backbone.state_dict())
    assert_same(head_before, model.head.state_dict())


def test_hugging_face_names_and_key_value_order() -> None:
    model = scramble(small())
    state = encoder_file(model, "Hugging Face")
    attention = model.backbone.stages[2].blocks[0].attention
    prefix = "segformer.encoder.block.2.0.attention.self"
    assert torch.equal(state[f"{prefix}.key.weight"], attention.key_value.weight[:40])
    assert torch.equal(state[f"{prefix}.value.weight"], attention.key_value.weight[40:])
    expected = {
        "segformer.encoder.patch_embeddings.0.proj.weight",
        "segformer.encoder.patch_embeddings.3.layer_norm.bias",
        "segformer.encoder.block.0.0.layer_norm_1.weight",
        "segformer.encoder.block.0.0.attention.self.sr.weight",
        "segformer.encoder.block.0.0.attention.self.layer_norm.bias",
        "segformer.encoder.block.3.0.attention.output.dense.weight",
        "segformer.encoder.block.3.0.mlp.dense1.weight",
        "segformer.encoder.block.3.0.mlp.dwconv.dwconv.bias",
        "segformer.encoder.block.3.0.mlp.dense2.weight",
        "segformer.encoder.layer_norm.3.weight",
    }
    assert expected <= state.keys()


def test_segmentation_file_as_backbone_reports_its_head(tmp_path: Path) -> None:
    source = scramble(small("cffm_b0"))
    save_released(source, tmp_path / "cffm.pth")
    report = load_backbone(model := small(), tmp_path / "cffm.pth", verbose=False)
    assert report.unexpected
    assert all(key.startswith("decode_head.") for key in report.unexpected)
    assert_same(source.backbone.state_dict(), model.backbone.state_dict())


def test_incomplete_backbone_is_refused(tmp_path: Path) -> None:
    state = encoder_file(small(), "ImageNet")
    del state["norm4.weight"]
    torch.save(state, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=r"missing: norm4\.weight"):
        load_backbone(small(), tmp_path / "encoder.pth")


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    source = scramble(small())
    state = encoder_file(source, "Hugging Face")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(state, path)
    assert load_backbone(small(), path, verbose=False).complete
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_backbone(small(), path)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("load", [load_model, lambda path: load_released(small(), path)])
def test_truncated_file_is_named(tmp_path: Path, fraction: float, load) -> None:
    path = tmp_path / "cut.pth"
    save_model(small(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.pth cannot be read .*cut off"):
        load(path)


def test_other_formats_and_code_are_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Code()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name in ("code.pth", "text.pth"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            load_released(small(), tmp_path / name)
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_released(small(), tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no named tensors; its keys are: epoch"):
        load_released(small(), tmp_path / "empty.pth")
    with pytest.raises(FileNotFoundError):
        load_released(small(), tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mrcfa_b1", {"num_references": 2, "dropout": 0.0}),
        ("cffm_b0", {"reference_levels": (1, 3), "reference_kernels": (7, 3)}),
        ("segformer_b0", {"fusion": "concatenate"}),
    ],
)
def test_own_checkpoint_rebuilds_the_model(name: str, overrides: dict, tmp_path: Path) -> None:
    model = scramble(small(name, **overrides))
    names = ("road", "sky", "tree", "car", "person")
    colours = tuple((index, 0, 255 - index) for index in range(5))
    offsets = tuple(range(-model.num_references, 0))
    model.trained_on = TrainedOn(None, colours, offsets, (320, 240))
    save_model(model, tmp_path / "deep" / "model.pt", class_names=names)
    copy = load_model(tmp_path / "deep" / "model.pt")
    assert copy.trained_on == TrainedOn(names, colours, offsets, (320, 240))
    assert copy.num_references == model.num_references
    assert not copy.training
    assert copy.config == model.config
    assert_same(model.state_dict(), copy.state_dict())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model.pt"]


def test_timm_checkpoint_does_not_download(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    model = create_model("segformer_b0", 3, backbone="pvt_v2_b0", embed_dim=16)
    model.config.overrides["backbone_options"] = {"pretrained": True}
    save_model(model, tmp_path / "model.pt")
    assert_same(model.state_dict(), load_model(tmp_path / "model.pt").state_dict())


def test_own_checkpoint_refusals(tmp_path: Path) -> None:
    model = small()
    path = tmp_path / "model.pt"
    with pytest.raises(ValueError, match="class_names must have 5 entries"):
        save_model(model, path, class_names=["one"])
    assert not path.exists()
    save_released(model, path)
    with pytest.raises(CheckpointError, match="call load_released"):
        load_model(path)
    save_model(model, path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format_version": 99}, path)
    with pytest.raises(CheckpointError, match="format version 99"):
        load_model(path)
    torch.save({**content, "name": "mrcfa_b9"}, path)
    with pytest.raises(CheckpointError, match="mrcfa_b9"):
        load_model(path)
    model.config = None
    with pytest.raises(ValueError, match="built by create_model"):
        save_model(model, path)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(small(), path)
    before = path.read_bytes()
    model = small()
    model.config.overrides["dims"] = lambda: None
    with pytest.raises(Exception, match="pickle"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
