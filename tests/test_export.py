"""Exported models against PyTorch: the clip model and a whole video by the step of streaming."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vss_kernels.select_tokens.eager import select_tokens
from vss_models import TrainedOn, VideoSegmentor, create_model
from vss_models.checkpoints import save_model
from vss_models.cli import main
from vss_models.data import EvaluationTransform, evaluation_references
from vss_models.inference.export import ExportError, _metadata, _stable_sort, export_model
from vss_models.inference.streaming import StreamingSegmenter

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}
OFFSETS = (-3, -2, -1)
Tensors = dict[str, torch.Tensor]


def tiny_model(name: str, **overrides: Any) -> VideoSegmentor:
    torch.manual_seed(5)
    return create_model(name, 5, **{**SMALL, **overrides}).eval()


def onnx_session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def loaded(path: Path, names: list[str]) -> Callable[[Tensors], Tensors]:
    """Returns a function that runs an exported file by the names of its inputs and outputs."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()

        def run_pt2(inputs: Tensors) -> Tensors:
            results = module(*inputs.values())
            results = (results,) if isinstance(results, torch.Tensor) else results
            return dict(zip(names, results, strict=True))

        return run_pt2
    session = onnx_session(path)
    assert [entry.name for entry in session.get_outputs()] == names

    def run_onnx(inputs: Tensors) -> Tensors:
        results = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, map(torch.from_numpy, results), strict=True))

    return run_onnx


def assert_close(have: torch.Tensor, want: torch.Tensor) -> None:
    assert have.shape == want.shape
    assert (have - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("mrcfa_b1", ".onnx"),
        ("segformer_b0", ".pt2"),
        pytest.param("mrcfa_b1", ".pt2", marks=pytest.mark.slow),
        pytest.param("cffm_b1", ".onnx", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_clip_model(tmp_path: Path, name: str, suffix: str) -> None:
    model = tiny_model(name)
    written = export_model(model, tmp_path / f"model{suffix}", (64, 96), streaming=False)
    frames = model.num_references + 1
    assert written.inputs == {"clip": (1, frames, 3, 64, 96)}
    assert written.outputs == {"logits": (1, 5, 16, 24)}
    clip = torch.randn(1, frames, 3, 64, 96)
    have = loaded(written.path, ["logits"])({"clip": clip})["logits"]
    want = model(clip)
    assert_close(have, want)
    assert written.error is not None
    if model.num_references:
        # The references are seen at all.
        assert (model(torch.cat([clip[:, :-1].flip(4), clip[:, -1:]], 1)) - want).abs().max() > 1e-3
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("mrcfa_b0", ".pt2"),
        ("cffm_b0", ".onnx"),
        pytest.param("mrcfa_b1", ".onnx", marks=pytest.mark.slow),
        pytest.param("cffm_b1", ".pt2", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_step_of_streaming(tmp_path: Path, name: str, suffix: str) -> None:
    model = tiny_model(name)
    written = export_model(model, tmp_path / f"step{suffix}", (64, 64), streaming=True)
    names = list(written.outputs)
    states = [entry.removeprefix("state_") for entry in names if entry.startswith("state_")]
    if suffix == ".onnx":
        session = onnx_session(written.path)
        shapes = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
        assert shapes == written.inputs
        note = json.loads(session.get_modelmeta().custom_metadata_map["vss_model"])
        assert note["program"] == "streaming step"
        assert note["model"] == name
    stream = StreamingSegmenter(model, OFFSETS)
    run = loaded(written.path, names)
    kept: list[Tensors] = []
    for number in range(6):
        frame = torch.randn(1, 3, 64, 64)
        inputs = {entry: torch.zeros(shape) for entry, shape in written.inputs.items()}
        inputs["frame"] = frame
        references = evaluation_references(number, OFFSETS)
        for position, earlier in enumerate(references):
            for state in states:
                inputs[f"reference{position}_{state}"] = kept[earlier][f"state_{state}"]
        results = run(inputs)
        kept.append(results)
        assert_close(results["logits" if references else "frame_logits"], stream.step_logits(frame))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_says_how_to_feed_it(tmp_path: Path, suffix: str) -> None:
    model = tiny_model("segformer_b0")
    names, colours = ("a", "b", "c", "d", "e"), tuple((number, 2, 3) for number in range(5))
    model.trained_on = TrainedOn(names, colours, frame_scale=(96, 64))
    path = export_model(model, tmp_path / f"model{suffix}", (64, 96), streaming=False).path
    if suffix == ".onnx":
        text = onnx_session(path).get_modelmeta().custom_metadata_map["vss_model"]
    else:
        extra_files = {"vss_model": ""}
        torch.export.load(path, extra_files=extra_files)
        text = extra_files["vss_model"]
    note = json.loads(text)
    assert note["class_names"] == list(names)
    assert note["class_colours"] == [list(colour) for colour in colours]
    assert note["reference_offsets"] == []
    assert note["frame_scale"] == [96, 64]
    # The rule in words, carried out with nothing but what the file says.
    frame = torch.randint(0, 256, (1, 3, 50, 96), dtype=torch.uint8)
    resized = torch.nn.functional.interpolate(frame.float(), (64, 96), mode="bilinear").round()
    mean, deviation = (torch.tensor(note[name]).view(3, 1, 1) for name in ("mean", "deviation"))
    expected = EvaluationTransform(tuple(note["frame_scale"]))(frame) * deviation + mean
    # PyTorch resizes 8-bit images in fixed point, which rounds a few halves the other way.
    levels = (resized - 255 * expected).abs()
    assert levels.max() < 1.01
    assert (levels > 0.01).float().mean() < 0.01
    assert "without antialiasing" in note["resize"]


def test_offsets_that_a_model_does_not_know_are_the_published_ones(tmp_path: Path) -> None:
    note = json.loads(_metadata(tiny_model("mrcfa_b0"), streaming=False))
    assert note["reference_offsets"] == [-9, -6, -3]
    assert note["frame_scale"] == [853, 480]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_full_disk_is_named(tmp_path: Path, suffix: str) -> None:
    save_model(tiny_model("segformer_b0"), tmp_path / "model.pt")
    out = tmp_path / "out" / f"model{suffix}"
    arguments = ["export", "--checkpoint", str(tmp_path / "model.pt"), "--out", str(out)]
    # A limit on the size of files looks to a program like a full disk.
    result = subprocess.run(
        [sys.executable, "-m", "vss_models.cli", *arguments, "--size", "64", "64"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert result.returncode == 1
    assert f"vss export: {out}: File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(out.parent.iterdir())


def test_equal_scores_keep_their_order(tmp_path: Path) -> None:
    """ONNX's choice of tokens breaks ties as PyTorch's stable sort does."""

    class Select(torch.nn.Module):
        def forward(self, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
            return select_tokens(target, reference, 9, 5)

    # Small whole numbers: exact sums, many of them equal.
    target = torch.randint(-1, 2, (1, 12, 3)).float()
    reference = torch.randint(-1, 2, (1, 2, 18, 3)).float()
    program = torch.onnx.export(
        Select().eval(),
        (target, reference),
        dynamo=True,
        verbose=False,
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
    )
    assert program is not None
    program.save(tmp_path / "select.onnx")
    session = onnx_session(tmp_path / "select.onnx")
    names = [entry.name for entry in session.get_inputs()]
    for seed in range(20):
        torch.manual_seed(seed)
        reference = torch.randint(-1, 2, (1, 2, 18, 3)).float()
        inputs = dict(zip(names, (target.numpy(), reference.numpy()), strict=True))
        have = session.run(None, inputs)[0]
        assert np.array_equal(have, select_tokens(target, reference, 9, 5).numpy()), seed


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tiny_model("segformer_b0"), tmp_path / "model.pt")
    out = tmp_path / "new" / "model.pt2"
    options = ["export", "--checkpoint", str(tmp_path / "model.pt"), "--out", str(out)]
    assert main([*options, "--size", "96", "64"]) == 0
    printed = capsys.readouterr().out
    assert "1 x 1 x 3 x 64 x 96" in printed
    assert "agrees with the model to" in printed
    assert main([*options, "--size", "96", "64"]) == 1
    assert "add --overwrite" in capsys.readouterr().err


def test_errors_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("segformer_b0")
    with pytest.raises(ValueError, match=r"path must end in \.pt2 or \.onnx"):
        export_model(model, tmp_path / "model.pth", (64, 96), False)
    with pytest.raises(ValueError, match="streaming needs a model with references"):
        export_model(model, tmp_path / "model.pt2", (64, 96), True)
    with pytest.raises(ValueError, match="multiples of 32"):
        export_model(tiny_model("mrcfa_b0"), tmp_path / "model.pt2", (64, 90), False)
    with pytest.raises(ValueError, match=r"model\.eval"):
        export_model(create_model("segformer_b0", 5), tmp_path / "model.pt2", (64, 96), False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx and onnxscript: pip install"):
        export_model(model, tmp_path / "model.onnx", (64, 96), False)
    monkeypatch.undo()
    wrong = (torch.zeros(1, 5, 16, 24),)
    monkeypatch.setattr("vss_models.inference.export._run_pt2", lambda path, inputs: wrong)
    with pytest.raises(ExportError, match="differ from the model's by 1 of"):
        export_model(model, tmp_path / "model.pt2", (64, 96), False)
    assert not list(tmp_path.iterdir())
