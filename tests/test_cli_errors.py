"""What ``vss`` says, and how it ends, when something is wrong."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vss_kernels
import vss_models
from vss_models import cli
from vss_models.checkpoints import CheckpointError
from vss_models.cli import main
from vss_models.commands.errors import EndedBySignal


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes ``vss configs`` fail with an error."""

    def fail_with(error: BaseException) -> None:
        def run(options: list[str]) -> int:
            raise error

        module = SimpleNamespace(main=run)
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)

    return fail_with


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a mask is 4x4, its frame 8x8"), "a mask is 4x4, its frame 8x8"),
        (TypeError("frame must be uint8"), "frame must be uint8"),
        (CheckpointError("last.pt is cut off"), "last.pt is cut off"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (FileNotFoundError("clip.mp4: no such file"), "clip.mp4: no such file"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "a.png: No space left"),
        (MemoryError("cannot allocate\nmore"), "not enough memory (cannot allocate)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory (Default"),
        (RuntimeError("no kernel\nException raised from f at x.cpp:1"), "no kernel\n"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "'utf-8' codec"),
    ],
)
def test_an_error_is_one_line(
    error: Exception,
    line: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    assert main(["configs"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"vss configs: {line}")
    assert message.count("\n") == 1


def test_the_traceback_is_shown_on_request(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ValueError("wrong"))
    assert main(["configs", "--traceback"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Traceback")
    assert message.endswith("vss configs: wrong\n")


def test_a_defect_of_the_program_keeps_its_traceback(
    failing: Callable[[BaseException], None],
) -> None:
    failing(KeyError("classes"))
    with pytest.raises(KeyError):
        main(["configs"])


@pytest.mark.parametrize(
    ("interrupt", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (EndedBySignal(signal.SIGTERM), 143, "ended by SIGTERM"),
    ],
)
def test_an_interrupt_is_no_error_of_the_program(
    interrupt: KeyboardInterrupt,
    status: int,
    line: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(interrupt)
    assert main(["configs"]) == status
    assert capsys.readouterr().err == f"vss configs: {line}\n"


def test_ctrl_c_while_a_command_is_imported_is_no_error_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert main(["segment", "clip.mp4"]) == 130
    assert capsys.readouterr().err == "vss segment: interrupted\n"


def broken_dataset(index: int) -> None:
    raise ValueError("data/a/mask/1.png: broken mask\n(2 more)")


def test_an_error_of_a_loading_process_is_its_message(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    loader = torch.utils.data.DataLoader(
        [0], collate_fn=broken_dataset, num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(ValueError, match="Original Traceback") as caught:
        next(iter(loader))
    failing(caught.value)
    assert main(["configs"]) == 1
    assert capsys.readouterr().err == "vss configs: data/a/mask/1.png: broken mask\n(2 more)\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["synthesize", "FOLDER/set", "--frames", "0"],
        ["synthesize", "FOLDER/set", "--size", "8", "8"],
        ["segment", "FOLDER/none.mp4", "--checkpoint", "FOLDER/none.pt", "--out", "FOLDER/out"],
        ["export", "--checkpoint", "FOLDER/none.pt", "--out", "FOLDER/a.onnx"],
        ["fit", "--config", "segformer_synthetic", "--data.root", "FOLDER", "--output", "FOLDER/r"],
        ["fit", "--config", "mrcfa_synthetic", "--data.root", "FOLDER", "--data.batch_size", "0"],
        ["fit", "--config", "mrcfa_synthetic", "--data.root", "FOLDER", "--model.name", "unet"],
    ],
)
def test_user_errors_of_every_command_are_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.replace("FOLDER", str(tmp_path)) for argument in arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vss ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"vss {arguments[0]}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment"],
        ["segment", "--out", "o"],
        ["export", "--size", "1"],
        ["synthesize"],
        ["demo", "--steps", "many"],
        ["configs", "--what"],
        ["fit", "--model.overrides", "wide"],
        ["test", "--model.nam", "mrcfa_b0"],
    ],
)
def test_a_usage_error_of_every_command_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the usage, which has dozens, and PyTorch's or the parser's paragraphs."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"vss {arguments[0]}: ")
    assert message.count("\n") == 1
    assert f"(`vss {arguments[0]} --help` has the options)" in message


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_a_missing_package_is_named_with_its_remedy() -> None:
    code = "import sys; sys.modules[sys.argv[1]] = None; from vss_models.cli import main;"
    result = run_python(code + "sys.exit(main(['fit', '--help']))", "lightning")
    assert result.returncode == 1
    assert "vss fit: this command needs the package lightning" in result.stderr
    assert "vss-kernels[train]" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_needs_no_package_and_a_missing_pytorch_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None; from vss_models.cli import main;"
    assert run_python(code + "sys.exit(main(['--help']))").returncode == 0
    result = run_python(code + "sys.exit(main(['segment', 'a.mp4']))")
    assert result.returncode == 1
    assert result.stderr.startswith("vss segment: this command needs the package torch")


@pytest.mark.parametrize("command", [["vss_models.cli", "info"], ["vss_kernels.info"]])
def test_a_reader_that_leaves_early_is_no_error(command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == (
        f"vss {vss_kernels.__version__} (PyTorch {torch.__version__})\n"
    )
    assert vss_models.__version__ == vss_kernels.__version__


def test_every_public_name_of_the_models_is_there() -> None:
    for name in vss_models.__all__:
        assert getattr(vss_models, name) is not None
    assert set(vss_models.__all__) <= set(dir(vss_models))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vss_models.nothing
