"""Export to torch.export and ONNX files: the clip model, or one step of streaming.

An exported program is one frame size and one video. It is made of plain PyTorch operators, and it
is compared with the model before it gets its name.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vss_kernels
from vss_models.atomic import TEMPORARY_SUFFIX, atomic_write
from vss_models.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from vss_models.heads.mrcfa import RelationReference
from vss_models.inference.streaming import evaluation_transform, reference_offsets
from vss_models.model import VideoSegmentor

SUFFIXES = (".pt2", ".onnx")
METADATA_KEY = "vss_model"
RESIZE_RULE = (
    "keep the ratio and fit the frame into frame_scale (long edge, short edge), then stretch it to "
    "the input's size; both times bilinear without antialiasing, rounded to 8 bits; then scale to "
    "0..1, subtract mean and divide by deviation"
)
"""How :class:`vss_models.data.EvaluationTransform` turns RGB frames into the network's input."""

TOLERANCE = 1e-4
"""Largest difference from the model, relative to the largest magnitude, that a file may have."""


class ExportError(RuntimeError):
    """A model cannot be exported, or the exported one computes something else."""


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Attributes:
        path: The file.
        inputs: Names and shapes of the inputs, in order.
        outputs: Names and shapes of the outputs, in order.
        error: Largest difference of an output from the model's on other inputs than those it was
            traced with, relative to the largest magnitude; None if it could not be compared because
            onnxruntime is not installed.
    """

    path: Path
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    error: float | None


class StreamingStep(nn.Module):
    """One step of streaming as a function of tensors alone.

    Args:
        model: A model with references.
    """

    def __init__(self, model: VideoSegmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, *references: Tensor) -> tuple[Tensor, ...]:
        """Segments a frame with and without its references.

        Args:
            frame: (N, 3, H, W), normalised.
            references: The state tensors of the R references, oldest first, one frame's after the
                other's.

        Returns:
            The logits (N, K, H/4, W/4); the logits of the frame on its own, which are those to use
            as long as there are fewer than R earlier frames (any numbers may stand in for the
            references then); and this frame's state tensors, see :func:`state_tensors`.
        """
        state = self.model.encode_frame(frame)
        count = len(references) // self.model.num_references
        earlier = [
            _state_of(references[first : first + count])
            for first in range(0, len(references), count)
        ]
        logits = self.model.decode(state, earlier)
        alone = self.model.head.classify_frame(state)
        return logits, alone, *state_tensors(state.reference).values()


def state_tensors(reference: Any) -> dict[str, Tensor]:
    """Names the tensors that streaming keeps of a frame, a `FrameState.reference`."""
    if isinstance(reference, RelationReference):
        keys = zip(("keys_8", "keys_16", "keys_32"), reference.keys, strict=True)
        return {**dict(keys), "values": reference.values}
    return {"features": reference}


def _state_of(tensors: Sequence[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else RelationReference(tuple(tensors[:-1]), tensors[-1])


def export_model(
    model: VideoSegmentor, path: str | os.PathLike[str], size: tuple[int, int], streaming: bool
) -> ExportedFile:
    """Writes a model as a torch.export (.pt2) or ONNX (.onnx) file for one video of one size.

    The clip model maps `clip` (1, R + 1, 3, H, W) to `logits` (1, K, H/4, W/4). The step of
    streaming is :class:`StreamingStep`: what it calls `state_...` for a frame is passed as
    `reference0_...` (the oldest) and so on with later ones. The file also carries, as JSON under
    `vss_model`, what a program needs to feed it: names and colours of the classes, the frame
    offsets, and how frames are resized (a scale of null: frames kept their size) and normalised.
    The program computes in float32 whatever the model was trained in.

    Args:
        model: The model, in evaluation mode, in float32 on the CPU.
        path: File to write; an existing one is replaced.
        size: (height, width) of the network's input.
        streaming: Whether to export the step of streaming rather than the clip model.

    Raises:
        ExportError: If a package is missing, or the result differs from the model's.
        OSError: If the disk is full; the error names the file.
        ValueError: If the suffix, the size or the model does not fit.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end in {' or '.join(SUFFIXES)}, got {path}")
    if min(size) < 1:
        raise ValueError(f"size must be (height, width) of at least 1 pixel, got {tuple(size)}")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    if streaming and not model.num_references:
        raise ValueError(
            "streaming needs a model with references; a per-frame model remembers nothing, export "
            "it without"
        )
    if path.suffix == ".onnx":
        _demand_packages("onnx", "onnxscript")
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), vss_kernels.backend("eager"):
        module = StreamingStep(model) if streaming else model
        inputs = _inputs(model, size, streaming, seed=0)
        other_inputs = _inputs(model, size, streaming, seed=1)
        expected = _as_tuple(module(*other_inputs.values()))
        outputs = dict(zip(_output_names(inputs, streaming), expected, strict=True))
        program = torch.export.export(module, tuple(inputs.values()))
        answers: tuple[Tensor, ...] | None
        with atomic_write(path, suffix=f"{TEMPORARY_SUFFIX}{path.suffix}") as temporary:
            if path.suffix == ".pt2":
                metadata = {METADATA_KEY: _metadata(model, streaming)}
                # PyTorch's own writer of files aborts the process on a full disk.
                content = io.BytesIO()
                torch.export.save(program, content, extra_files=metadata)
                temporary.write_bytes(content.getbuffer())
                answers = _run_pt2(temporary, other_inputs)
            else:
                _save_onnx(program, temporary, inputs, outputs, _metadata(model, streaming))
                answers = _run_onnx(temporary, other_inputs)
            error = None if answers is None else _largest_error(outputs, answers)
            if error is not None and not error <= TOLERANCE:
                raise ExportError(
                    f"{path} is not written: its results differ from the model's by {error:.2g} of "
                    f"the largest magnitude, more than {TOLERANCE:g}"
                )
    return ExportedFile(path, _shapes(inputs), _shapes(outputs), error)


def input_size(model: VideoSegmentor) -> tuple[int, int]:
    """Returns (height, width) of a model's input for landscape frames that fill its frame scale.

    That is the scale it was trained for, the published 853x480 where it is not known, with sides
    stretched to multiples of 32.

    Raises:
        ValueError: If the model was trained on frames of their own size.
    """
    transform = evaluation_transform(model)
    if transform.scale is None:
        raise ValueError(
            "the model was trained on frames of their own size, so there is no size to take from "
            "it: give the width and height of the network's input (--size)"
        )
    long_edge, short_edge = transform.scale
    return transform.output_size((short_edge, long_edge))


def _inputs(
    model: VideoSegmentor, size: tuple[int, int], streaming: bool, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(model.num_references + 1, 1, 3, *size, generator=generator)
    if not streaming:
        return {"clip": frames.transpose(0, 1).contiguous()}
    inputs = {"frame": frames[-1]}
    for number, earlier in enumerate(frames[:-1]):
        for name, tensor in state_tensors(model.encode_frame(earlier).reference).items():
            inputs[f"reference{number}_{name}"] = tensor.contiguous()
    return inputs


def _output_names(inputs: dict[str, Tensor], streaming: bool) -> list[str]:
    if not streaming:
        return ["logits"]
    first = "reference0_"
    states = [f"state_{name.removeprefix(first)}" for name in inputs if name.startswith(first)]
    return ["logits", "frame_logits", *states]


def _metadata(model: VideoSegmentor, streaming: bool) -> str:
    return json.dumps(
        {
            "program": "streaming step" if streaming else "clip",
            "model": None if model.config is None else model.config.name,
            "num_references": model.num_references,
            "num_classes": model.num_classes,
            "class_names": model.trained_on.class_names,
            "class_colours": model.trained_on.class_colours,
            "reference_offsets": reference_offsets(model),
            "frame_scale": evaluation_transform(model).scale,
            "resize": RESIZE_RULE,
            "mean": IMAGENET_MEAN,
            "deviation": IMAGENET_STD,
        }
    )


def _save_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    inputs: dict[str, Tensor],
    outputs: dict[str, Tensor],
    metadata: str,
) -> None:
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
    )
    assert onnx_program is not None
    onnx_program.model.metadata_props[METADATA_KEY] = metadata
    onnx_program.save(path)


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """ONNX has no sort, but its TopK puts equal values in the order of their positions."""
    import onnxscript

    onnx: Any = onnxscript.opset18
    size = onnx.Gather(onnx.Shape(values), onnx.Constant(value_ints=[dim]))
    return onnx.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def _run_pt2(path: Path, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return _as_tuple(torch.export.load(path).module()(*inputs.values()))


def _run_onnx(path: Path, inputs: dict[str, Tensor]) -> tuple[Tensor, ...] | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    answers = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return tuple(torch.from_numpy(answer) for answer in answers)


def _largest_error(expected: dict[str, Tensor], answers: Sequence[Tensor]) -> float:
    largest = 0.0
    for (name, want), have in zip(expected.items(), answers, strict=True):
        if want.shape != have.shape:
            raise ExportError(f"the exported {name} has the shape {tuple(have.shape)}")
        difference = (have - want).abs().max() / want.abs().max().clamp_min(1e-30)
        # NaN must not hide behind a comparison.
        largest = max(largest, float(difference.nan_to_num(torch.inf)))
    return largest


def _demand_packages(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export to ONNX needs {' and '.join(missing)}: pip install 'vss-kernels[export]'"
        )


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


__all__ = [
    "ExportError",
    "ExportedFile",
    "StreamingStep",
    "export_model",
    "input_size",
    "state_tensors",
]
