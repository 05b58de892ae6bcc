"""`vss segment INPUT --checkpoint FILE --out FOLDER`: labels videos or folders of frames."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from vss_models.commands.errors import CommandParser, describe, signals_interrupt
from vss_models.commands.model_options import add_model_options, chosen_model
from vss_models.data import (
    ClassTable,
    EvaluationTransform,
    numbered_classes,
    read_classes,
    vspw_classes,
)
from vss_models.data.classes import generated_colours
from vss_models.inference.compile import AUTOMATIC, CUDA_GRAPH
from vss_models.inference.streaming import StreamingSegmenter
from vss_models.inference.video_to_files import (
    FIRST_LABELS,
    OutputSettings,
    check_apart,
    find_inputs,
    incomplete_folder,
    output_files,
    segment_video,
)
from vss_models.model import PRECISIONS, VideoSegmentor
from vss_models.video import FrameSource, LiveSource, VideoError, exact_rate, open_video

DESCRIPTION = """\
Label every pixel of a video.

INPUT is a video file, a folder of frames, or a folder of such files and folders. For each video
FOLDER/<video>/overlay.mp4 shows the frames under the colours of their classes, beside a legend, and
FOLDER/<video>/labels/<frame>.png are palette images whose pixels are the classes.

With --camera the frames come from a camera or a network stream until Ctrl-C. The newest frame is
labelled; those that come meanwhile are dropped and counted. The output is in FOLDER/camera.
"""

CAMERA = "camera"

NOT_COMPILED = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Labels the videos of an input.

    Args:
        arguments: Command-line options; those of the process if None.

    Returns:
        The exit status: 0 for success, 1 if a video could not be labelled to its end. After a
        damaged video the others are still labelled.

    Raises:
        SystemExit: With status 2 if the options are not valid.
        CheckpointError: If the checkpoint is not what it should be.
        OSError: If a file is missing or in the way.
        KeyboardInterrupt: After Ctrl-C, SIGTERM or SIGHUP, when the frames so far are written. It
            is the usual end of a camera, and none is raised then.
    """
    parser = _parser()
    with signals_interrupt():
        return _run(parser, parser.parse_args(arguments))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    device = _device(parser, options.device)
    try:
        settings = OutputSettings(
            not options.no_overlay, not options.no_labels, options.opacity, options.label_mapping
        )
        if options.rate is not None:
            exact_rate(options.rate)
        inputs = _inputs(parser, options)
        model = chosen_model(parser, options)
        classes = _classes(model, options.classes)
        transform = EvaluationTransform(scale=tuple(options.size)) if options.size else None
        how = None if options.compile == NOT_COMPILED else options.compile
        segmenter = StreamingSegmenter(
            model.to(device), options.offsets, transform, options.precision, how
        )
    except ValueError as error:
        parser.error(str(error))
    # Before the work of hours, not after it.
    for name in inputs:
        earlier = output_files(options.out / name, settings)
        if earlier and not options.overwrite:
            raise FileExistsError(f"{earlier[0]} exists: add --overwrite or choose another --out")
    failures = 0
    with _progress() as progress:
        for name, path in inputs.items():
            try:
                _segment(segmenter, name, path, classes, settings, options, progress)
            except (VideoError, ValueError, OSError) as error:
                failures += 1
                reason = describe(error)
                where = path or options.camera
                _report(reason if isinstance(error, VideoError) else f"{where}: {reason}")
                _report_kept(options.out / name, settings)
            except KeyboardInterrupt:
                _report_kept(options.out / name, settings)
                raise
    return 1 if failures else 0


def _report_kept(folder: Path, settings: OutputSettings) -> None:
    """Says where the frames before a fault are."""
    for kept in (incomplete_folder(folder), folder):
        if output_files(kept, settings):
            _report(f"{kept} holds the frames so far")
            return


def _inputs(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> Mapping[str, Path | None]:
    """The videos by name; None stands for the camera."""
    if (options.input is None) == (options.camera is None):
        parser.error("give either INPUT or --camera")
    if options.camera is not None:
        return {CAMERA: None}
    if options.camera_format is not None:
        parser.error("--camera-format is for --camera")
    inputs = find_inputs(options.input)
    for name in inputs:
        check_apart(options.out / name, options.input)
    return inputs


def _segment(
    segmenter: StreamingSegmenter,
    name: str,
    path: Path | None,
    classes: ClassTable,
    settings: OutputSettings,
    options: argparse.Namespace,
    progress: Progress,
) -> None:
    source: FrameSource
    if path is None:
        source = LiveSource(options.camera, options.camera_format, options.rate)
    else:
        source = open_video(path, options.rate)
    if segmenter.is_compiled:
        segmenter.warm_up(source.size)
    task = progress.add_task(name, total=source.num_frames, speed="")
    start = time.perf_counter()
    done = 0

    def advance(*_: object) -> None:
        nonlocal done
        done += 1
        speed = done / (time.perf_counter() - start)
        progress.update(task, advance=1, speed=f"{speed:.1f} frames/s")

    folder = options.out / name
    try:
        result = segment_video(
            segmenter, source, folder, classes, settings, options.overwrite, advance
        )
    finally:
        progress.remove_task(task)
    seconds = time.perf_counter() - start
    dropped = f", {result.num_dropped} dropped" if source.is_live else ""
    print(
        f"{folder}: {done} frames in {seconds:.1f} s ({done / seconds:.1f} frames/s){dropped}",
        flush=True,
    )


def _classes(model: VideoSegmentor, listed: Path | None) -> ClassTable:
    if listed is not None:
        table = read_classes(listed)
        if len(table) != model.num_classes:
            raise ValueError(
                f"{listed} names {len(table)} classes, the model has {model.num_classes}"
            )
        return table
    known = model.trained_on
    if known.class_names is not None:
        colours = known.class_colours or generated_colours(model.num_classes)
        return ClassTable(known.class_names, colours)
    vspw = vspw_classes()
    return vspw if len(vspw) == model.num_classes else numbered_classes(model.num_classes)


def _device(parser: argparse.ArgumentParser, name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        parser.error(f"--device must be a device such as cpu or cuda:0, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: PyTorch finds no CUDA device on this machine")
    try:
        torch.ones(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        # PyTorch goes on about how it was built.
        reason = describe(error).splitlines()[0].split(". ")[0]
        parser.error(f"--device {device} cannot be used here: {reason}")
    return device


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=True,
        redirect_stderr=True,
    )


def _report(reason: object) -> None:
    print(f"vss segment: {reason}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="vss segment",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("input", type=Path, nargs="?", metavar="INPUT", help="video file or folder, see above")
    add("--camera", metavar="DEVICE_OR_URL", help="such as /dev/video0 or rtsp://host/stream")
    add(
        "--camera-format",
        metavar="NAME",
        help="FFmpeg's input format of the device: v4l2, avfoundation or dshow",
    )
    add_model_options(parser)
    add("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    add("--overwrite", action="store_true", help="replace the output of an earlier run")
    add("--device", help="such as cpu or cuda:0; a GPU if there is one")
    add(
        "--precision",
        choices=PRECISIONS,
        help="of the network's numbers; bfloat16 is faster on most GPUs (default: as in training, "
        "else float32)",
    )
    add(
        "--compile",
        choices=(AUTOMATIC, NOT_COMPILED, "inductor", CUDA_GRAPH),
        default=AUTOMATIC,
        help="compile the network first, which takes minutes; cuda-graph also replays it on a GPU "
        "without the cost of launching (default: auto, which is cuda-graph on a GPU, else none)",
    )
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="size that frames are fitted into for the network, turned by a quarter for upright "
        "ones; labels have the frame's own size (default: as in training, else 853 480)",
    )
    add(
        "--offsets",
        type=int,
        nargs="+",
        metavar="N",
        help="frames of the references relative to the labelled one (default: as in training, else "
        "-9 -6 -3)",
    )
    add(
        "--rate",
        type=float,
        metavar="FPS",
        help="frames per second of the overlay (default: the "
        "video's own, 15 for a folder of frames)",
    )
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes.txt of the data set: names and colours of the classes",
    )
    add(
        "--opacity",
        type=float,
        default=0.5,
        help="weight of the class colours in the overlay, 0..1 (default: 0.5)",
    )
    add(
        "--label-mapping",
        choices=FIRST_LABELS,
        default="identity",
        help="pixels of the label images: the classes (identity), or one more, as masks of a data "
        "set in the VSPW layout have them (vspw); default: identity",
    )
    add("--no-overlay", action="store_true", help="write no overlay.mp4")
    add("--no-labels", action="store_true", help="write no label images")
    return parser
