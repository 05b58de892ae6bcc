"""A run's folder from the command line: its configuration, refused starts, evaluations."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.tiny_runs import contents
from tests.support.tiny_training import OVERRIDES
from vss_models.cli import main

SETTINGS = [
    "--config=mrcfa_synthetic",
    "--data.train_transform.scale=[96,96]",
    "--data.train_transform.crop=[96,96]",
    "--data.evaluation_transform.scale=[96,96]",
    "--data.num_workers=0",
    "--data.batch_size=1",
    f"--model.overrides={json.dumps(OVERRIDES)}",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=2",
    "--checkpoints.every_n_steps=2",
    "--overlays.every_n_steps=0",
]


def vss(command: str, root: Path, output: Path, *options: str) -> int:
    return main([command, *SETTINGS, f"--data.root={root}", f"--output={output}", *options])


@pytest.fixture(scope="module")
def command_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("command") / "run"
    assert vss("fit", root, output, "--trainer.max_steps=2") == 0
    return output


def test_the_configuration_of_a_run_is_kept(
    root: Path, command_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(command_run, tmp_path / "run"))
    before = contents(output)
    assert "max_steps: 2" in (output / "config.yaml").read_text()
    assert any(name.startswith("events.out") for name in before)

    refused = [
        (["--trainer.max_steps=4"], r"continue that run with --ckpt_path"),
        (["--trainer.max_steps=4", "--ckpt_path=last", "--seed=5"], "seed=0, this one has 5"),
        (["--trainer.max_steps=4", f"--ckpt_path={output / 'last.pt'}"], "weights alone"),
        (["--ckpt_path=last", "--data.num_classes=7"], "num_classes"),
        (["--ckpt_path=last", "--data.offsets=[-1]"], "offsets"),
        (["--ckpt_path=nowhere.ckpt"], "no such checkpoint"),
        # The validation that follows step 2 would be made again, and best.ckpt written, before it.
        (
            ["--trainer.max_steps=4", "--ckpt_path=last", "--data.train_transform.crop=[95,96]"],
            "data.train_transform.crop must be multiples of 32",
        ),
    ]
    for options, message in refused:
        assert vss("fit", root, output, *options) == 1, options
        assert message in capsys.readouterr().err
        assert contents(output) == before, options

    assert vss("fit", root, output, "--trainer.max_steps=4", "--ckpt_path=last") == 0
    after = contents(output)
    assert after["config.yaml"] == before["config.yaml"]
    assert b"max_steps: 4" in after["config_from_step_2.yaml"]


@pytest.mark.parametrize("content", [b"", b"weights"])
def test_a_damaged_checkpoint_is_named_with_the_newest_whole_one(
    root: Path,
    command_run: Path,
    tmp_path: Path,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Path(shutil.copytree(command_run, tmp_path / "run"))
    last = output / "last.ckpt"
    last.write_bytes(content)
    before = contents(output)
    assert vss("fit", root, output, "--trainer.max_steps=4", f"--ckpt_path={last}") == 1
    message = capsys.readouterr().err
    assert f"vss fit: {last} " in message
    assert f"The newest whole checkpoint is {output / 'checkpoints' / 'step_2.ckpt'}" in message
    assert contents(output) == before


def test_a_refused_start_makes_no_folder(root: Path, tmp_path: Path) -> None:
    assert vss("fit", root, tmp_path / "a" / "run", "--data.offsets=[-1]") == 1
    assert vss("fit", tmp_path / "nowhere", tmp_path / "b" / "run") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["test", "validate"])
def test_evaluation_writes_its_report_only(
    root: Path, command_run: Path, tmp_path: Path, command: str
) -> None:
    output = Path(shutil.copytree(command_run, tmp_path / "run"))
    before = contents(output)
    assert vss(command, root, output, f"--checkpoint={output / 'last.pt'}") == 0
    after = contents(output)
    added = {name for name in after if not name.startswith("evaluation/")}
    assert added == before.keys()
    assert all(after[name] == before[name] for name in before)


def test_a_command_that_is_told_to_end_exits_with_the_signal(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"

    def tell() -> None:
        until = time.monotonic() + 60
        while not (output / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    thread.start()
    status = vss("fit", root, output, "--trainer.max_steps=100000", "--trainer.limit_val_batches=0")
    thread.join()
    assert status == 128 + signal.SIGTERM
    assert "vss fit: ended by SIGTERM" in capsys.readouterr().err
    assert vss("fit", root, output, "--trainer.max_steps=2", "--ckpt_path=last") == 0
    assert (output / "last.pt").exists()
