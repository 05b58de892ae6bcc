"""`vss export --checkpoint FILE --out FILE.onnx`: writes a model for other programs to run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vss_models.commands.errors import CommandParser
from vss_models.commands.model_options import add_model_options, chosen_model
from vss_models.inference.export import export_model, input_size

DESCRIPTION = """\
Write a trained model as a program of plain PyTorch operators (torch.export, FILE.pt2) or as an ONNX
model (FILE.onnx) for one frame size, and compare it with the model on random frames.

By default that is the clip model: references and target in, the target's logits out. With
--streaming it is one step of streaming: a frame and what was kept of its references in; logits and
what to keep of this frame out, so that every frame is encoded once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports a model.

    Args:
        arguments: Command-line options; those of the process if None.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: With status 2 if the options are not valid.
        CheckpointError: If the checkpoint is not what it should be.
        ExportError: If a package is missing, or the exported model is not the same.
        OSError: If a file is missing or in the way.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists: add --overwrite or choose another --out")
    try:
        model = chosen_model(parser, options)
        size = tuple(options.size[::-1]) if options.size else input_size(model)
        written = export_model(model, options.out, size, options.streaming)
    except ValueError as error:
        parser.error(str(error))
    for kind, shapes in (("input", written.inputs), ("output", written.outputs)):
        for name, shape in shapes.items():
            print(f"{kind:6} {name:20} {' x '.join(map(str, shape))}")
    if written.error is None:
        print(f"{written.path}: not compared with the model, onnxruntime is not installed")
    else:
        print(f"{written.path}: agrees with the model to {written.error:.1e}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="vss export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="to write: FILE.pt2 or FILE.onnx")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--streaming", action="store_true", help="one step of streaming instead of the clip model")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="width and height of the network's input (default: that of landscape frames in "
        "training, else 864 480)",
    )
    return parser
