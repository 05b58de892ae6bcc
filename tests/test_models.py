"""``create_model`` and the models' contract: settings, shapes, states, refusals, the loss."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tests.support.aggregation_cases import KEEP, PUBLISHED
from vss_models import MODEL_NAMES, ClipLogits, ClipLoss, VideoSegmentor, create_model

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}
FAMILIES = pytest.mark.parametrize("family", ["mrcfa", "cffm", "segformer"])


def small(name: str, **overrides: object) -> VideoSegmentor:
    return create_model(name, 5, **{**SMALL, **overrides})


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_name_builds(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=124)
    assert model.num_classes == 124
    assert model.num_references == (0 if name.startswith("segformer") else 3)
    assert model.config.name == name
    family, size = name.split("_")
    if family == "mrcfa":
        layers = model.head.relation.aggregation.weights()
        sizes = [[(w.shape[-1], w.shape[1], w.shape[0]) for w, *_ in chain] for chain in layers]
        variant = size if size in PUBLISHED else "b2"
        assert sizes == list(PUBLISHED[variant])
        assert model.head.relation.keep == KEEP[variant]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: create_model("mrcfa_b9", 5),
            ValueError,
            "mrcfa_b0, .*segformer_b5; got 'mrcfa_b9",
        ),
        (lambda: create_model("mrcfa_b0", 0), ValueError, "num_classes must be a positive"),
        (lambda: small("mrcfa_b0", embed_dim="x"), ValueError, "embed_dim must be a whole number"),
        (lambda: small("mrcfa_b0", embed_dim=10**30), ValueError, "embed_dim must be a whole nu"),
        (lambda: small("mrcfa_b0", drop_path=[]), ValueError, "drop_path must be a number, such"),
        (lambda: small("mrcfa_b0", dropout=float("nan")), ValueError, "dropout must be a number"),
        (lambda: small("mrcfa_b0", dims=8), ValueError, "dims must be a list of whole numbers"),
        (lambda: small("mrcfa_b0", fusion=3), ValueError, "fusion must be a word, such as 'proj"),
        (lambda: small("mrcfa_b0", focal_heads=2), TypeError, "no settings focal_heads; its sett"),
        (lambda: small("mrcfa_b0", keep=1.5), ValueError, r"keep must be in \(0, 1\], got 1.5"),
        (lambda: small("mrcfa_b0", num_references=0), ValueError, "num_references must be at leas"),
        (lambda: small("cffm_b0", fusion="sum"), ValueError, "fusion must be one of"),
        (lambda: small("cffm_b0", focal_heads=3), ValueError, "focal_heads must divide embed_dim"),
        (lambda: small("cffm_b0", reference_levels=(1,)), ValueError, "must be equally many"),
        (
            lambda: small("cffm_b0", reference_levels=(1, 2, 9)),
            ValueError,
            "between 1 and the window",
        ),
        (lambda: small("cffm_b0", focal_blocks=0), ValueError, "focal_blocks must be positive"),
        (lambda: small("cffm_b0", reference_kernels=(7, 4, 3)), ValueError, "odd and positive"),
    ],
)
def test_bad_settings_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@FAMILIES
def test_shapes_in_evaluation_and_training(family: str) -> None:
    model = small(f"{family}_b1")
    clip = torch.randn(2, 4, 3, 64, 96)
    logits = model(clip)
    assert isinstance(logits, ClipLogits)
    predictions = {"mrcfa": 4, "cffm": 1, "segformer": 0}[family]
    assert logits.per_frame.shape == (2, 4, 5, 16, 24)
    assert logits.target.shape == (2, predictions, 5, 16, 24)
    model.eval()
    with torch.no_grad():
        assert model(clip).shape == (2, 5, 16, 24)
        assert model.single_frame(clip[0]).shape == (4, 5, 16, 24)


@pytest.mark.parametrize(
    ("name", "overrides", "references"),
    [
        ("mrcfa_b1", {"num_references": 2}, 2),
        ("mrcfa_b0", {"num_references": 5}, 5),
        ("cffm_b0", {"reference_levels": [2], "reference_kernels": [5]}, 1),
        ("cffm_b1", {"reference_levels": [1, 1, 2, 7], "reference_kernels": [5, 7, 5, 3]}, 4),
    ],
)
def test_other_numbers_of_references(name: str, overrides: dict, references: int) -> None:
    model = small(name, **overrides)
    assert model.num_references == references
    clip = torch.randn(1, references + 1, 3, 64, 96)
    labels = torch.randint(0, 5, (1, references + 1, 64, 96))
    ClipLoss()(model(clip), labels).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        states = [model.encode_frame(frame) for frame in clip.unbind(1)]
        decoded = model.decode(states[-1], [state.reference for state in states[:-1]])
        torch.testing.assert_close(decoded, model(clip), rtol=1e-5, atol=1e-6)


def test_per_frame_model_ignores_the_other_frames() -> None:
    model = small("segformer_b0").eval()
    clip = torch.randn(1, 3, 3, 64, 64)
    with torch.no_grad():
        expected = model.single_frame(clip[:, -1])
        torch.testing.assert_close(model(clip), expected)
        torch.testing.assert_close(model.decode(model.encode_frame(clip[:, -1]), []), expected)
    with pytest.raises(ValueError, match="takes no references, got 1"):
        model.decode(model.encode_frame(clip[:, -1]), [None])


def test_only_cffm_and_segformer_take_odd_sizes() -> None:
    clip = torch.randn(1, 4, 3, 65, 99)
    with torch.no_grad():
        for name in ("cffm_b0", "segformer_b0"):
            assert small(name).eval()(clip).shape == (1, 5, 17, 25)
        model = small("mrcfa_b0").eval()
        with pytest.raises(ValueError, match="multiples of 32 for this model, got 65 x 99"):
            model(clip)
        assert model.single_frame(clip[0]).shape == (4, 5, 17, 25)


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (torch.zeros(1, 3, 3, 64, 64), ValueError, "must hold 4 frames .* got 3"),
        (torch.zeros(4, 3, 64, 64), ValueError, r"shape \(B, T, 3, H, W\), got \(4, 3, 64, 64\)"),
        (torch.zeros(1, 4, 1, 64, 64), ValueError, r"got \(1, 4, 1, 64, 64\)"),
        (torch.zeros(1, 4, 3, 16, 64), ValueError, "at least 32 pixels"),
        (torch.zeros(1, 4, 3, 64, 64, dtype=torch.uint8), TypeError, "got torch.uint8"),
        ([1], TypeError, "got list"),
    ],
)
def test_bad_clips_are_named(clip, error: type[Exception], message: str) -> None:
    model = small("mrcfa_b0").eval()
    with pytest.raises(error, match=message):
        model(clip)


@pytest.mark.parametrize("targets", [0, 1, 4])
@pytest.mark.parametrize("reduction", ["mean_all", "mean", "sum"])
def test_loss_is_its_definition(targets: int, reduction: str) -> None:
    logits = ClipLogits(torch.randn(2, 3, 5, 4, 6), torch.randn(2, targets, 5, 4, 6))
    labels = torch.randint(0, 5, (2, 3, 16, 24), dtype=torch.uint8)
    labels[:, :, :5] = 255
    weights = torch.rand(5) + 0.5

    def cross_entropy(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        full = F.interpolate(frames.double(), truth.shape[-2:], mode="bilinear")
        kind = "sum" if reduction == "mean_all" else reduction
        value = F.cross_entropy(
            full, truth.long(), weights.double(), ignore_index=255, reduction=kind
        )
        return value / truth.numel() if reduction == "mean_all" else value

    per_frame = cross_entropy(logits.per_frame.flatten(0, 1), labels.flatten(0, 1))
    expected = per_frame
    if targets:
        truth = labels[:, -1].repeat_interleave(targets, 0)
        expected = 0.3 * per_frame + cross_entropy(logits.target.flatten(0, 1), truth)
    loss = ClipLoss(auxiliary_weight=0.3, reduction=reduction, class_weights=weights)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_refusals() -> None:
    logits = ClipLogits(torch.randn(2, 3, 5, 4, 6), torch.randn(2, 1, 5, 4, 6))
    with pytest.raises(ValueError, match=r"B, T = \(2, 3\), got \(2, 4, 16, 24\)"):
        ClipLoss()(logits, torch.zeros(2, 4, 16, 24, dtype=torch.uint8))
    with pytest.raises(ValueError, match="reduction must be"):
        ClipLoss(reduction="none")


@FAMILIES
def test_autocast_trains_and_stays_close(family: str) -> None:
    model = small(f"{family}_b1", dropout=0.0, drop_path=0.0)
    clip = torch.randn(1, 4, 3, 64, 96)
    labels = torch.randint(0, 5, (1, 4, 64, 96))
    exact = model(clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(clip)
        ClipLoss()(rounded, labels).backward()
    assert rounded.per_frame.dtype == torch.bfloat16
    assert [k for k, p in model.named_parameters() if not p.grad.isfinite().all()] == []
    difference = (rounded.per_frame.float() - exact.per_frame).abs().max()
    assert difference <= 0.1 * exact.per_frame.abs().max()
    if family == "cffm":  # In MRCFA rounding may choose other tokens.
        difference = (rounded.target.float() - exact.target).abs().max()
        assert difference <= 0.1 * exact.target.abs().max()


def test_creating_a_model_imports_no_training_or_video_packages() -> None:
    program = (
        "import sys, vss_models; vss_models.create_model('mrcfa_b0', 2, dims=(8, 16, 40, 64));"
        "print([m for m in ('lightning', 'av', 'torchmetrics', 'timm', 'torchvision')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
