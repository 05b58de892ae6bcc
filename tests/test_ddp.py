"""Two processes on the CPU: one set of weights, and the figures of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_training import make_data, make_dataset, make_module
from vss_models.checkpoints import load_model
from vss_models.training import Evaluator, evaluate
from vss_models.training.resumable_loader import ResumableLoader

SCRIPT = """
import sys
from pathlib import Path

import torch

from tests.support.tiny_training import make_data, make_module, run, without_dropout
from vss_models.training import RunCheckpoints

if __name__ == "__main__":
    root, output, resume, how = sys.argv[1:]
    module = make_module(compile="eager" if how == "in one call" else None)
    if how == "in one call":
        without_dropout(module)
    run(
        module, make_data(Path(root), batch_size=1, max_val_videos=1 if how == "idle" else None),
        Path(output), 4, devices=2, strategy="ddp",
        resume=resume or None, limit_val_batches=None, val_check_interval=4,
        checkpoints=RunCheckpoints(every_n_steps=2),
    )
    torch.save(
        {"state": module.model.state_dict(), "report": vars(module.report)},
        Path(output, f"rank_{module.global_rank}.pt"),
    )
"""


def launch(
    tmp_path: Path, root: Path, output: Path, resume: str = "", how: str = ""
) -> list[dict[str, Any]]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    project = Path(__file__).parent.parent
    done = subprocess.run(
        [*command, str(script), str(root), str(output), resume, how],
        cwd=project,
        env={"PYTHONPATH": str(project), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(output / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_train_one_model_and_measure_it_once(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "set")
    first, second = launch(tmp_path, root, tmp_path / "run")
    start = make_module().model.state_dict()
    for key, value in first["state"].items():
        # Without SyncBatchNorm, which needs a GPU, running statistics are each process's own until
        # the validation at the last step, which starts from those of the first process.
        assert torch.equal(value, second["state"][key]), key
    key = "head.classifier.weight"
    assert not torch.equal(start[key], first["state"][key])

    assert json.dumps(first["report"]) == json.dumps(second["report"])
    model = load_model(tmp_path / "run" / "last.pt")
    alone = evaluate(model, make_data(root).evaluation_dataset("val"))
    assert first["report"]["num_frames"] == alone.num_frames == 36
    assert first["report"]["num_videos"] == alone.num_videos == 2
    for name in ("mean_iou", "weighted_iou", "pixel_accuracy", "class_iou"):
        assert first["report"][name] == pytest.approx(getattr(alone, name), abs=1e-12, nan_ok=True)


@pytest.mark.slow
def test_steps_in_one_call_average_the_gradients(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "set")
    plain = launch(tmp_path, root, tmp_path / "plain", how="plain")
    fast = launch(tmp_path, root, tmp_path / "fast", how="in one call")
    for key, value in plain[0]["state"].items():
        assert torch.equal(fast[0]["state"][key], fast[1]["state"][key]), key
        # AdamW divides by a gradient's size, so rounding shows where gradients vanish.
        torch.testing.assert_close(fast[0]["state"][key], value, rtol=1e-5, atol=1e-4, msg=key)


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "set")
    whole = launch(tmp_path, root, tmp_path / "run")
    middle = tmp_path / "run" / "checkpoints" / "step_2.ckpt"
    resumed = launch(tmp_path, root, tmp_path / "resumed", str(middle))
    for rank in (0, 1):
        for key, value in resumed[rank]["state"].items():
            assert torch.equal(value, whole[rank]["state"][key]), (rank, key)


def test_processes_share_the_clips_and_whole_videos(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "set")

    class Trainer:
        world_size = 2
        strategy = type("Strategy", (), {"root_device": torch.device("cpu")})

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    clips, frames = [], []
    for rank in (0, 1):
        data = make_data(root, batch_size=1)
        data.trainer = Trainer(rank)  # type: ignore[assignment]
        loader = data.train_dataloader()
        assert isinstance(loader, ResumableLoader)
        batches = iter(loader)
        clips.append([next(batches)["clip"] for _ in range(5)])
        frames.append([(item["video"], item["frame"]) for item in data.test_dataloader()])
    one = iter(make_data(root, batch_size=2).train_dataloader())
    for number in range(5):
        assert torch.equal(torch.cat([clips[0][number], clips[1][number]]), next(one)["clip"])
    assert {video for video, _ in frames[0]}.isdisjoint(video for video, _ in frames[1])
    everything = [(item["video"], item["frame"]) for item in make_data(root).test_dataloader()]
    assert sorted(frames[0] + frames[1]) == everything


def test_more_processes_than_videos_measure_what_one_does(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "set")
    first, second = launch(tmp_path, root, tmp_path / "run", how="idle")
    assert json.dumps(first["report"]) == json.dumps(second["report"])
    assert (first["report"]["num_videos"], first["report"]["num_frames"]) == (1, 18)
    model = load_model(tmp_path / "run" / "last.pt").eval()
    data = make_data(root, max_val_videos=1)
    evaluator = Evaluator(model, data.offsets, data.class_table().names)
    evaluator.reset("cpu", False)
    with torch.inference_mode():
        for item in data.val_dataloader():
            evaluator.update(item)
    alone = evaluator.report()
    for name in ("mean_iou", "weighted_iou", "pixel_accuracy", "class_iou"):
        assert first["report"][name] == pytest.approx(getattr(alone, name), abs=1e-12, nan_ok=True)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_the_same_step(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "set")
    output = tmp_path / "run"
    script = tmp_path / "train.py"
    program = SCRIPT.replace("Path(output), 4,", "Path(output), 10_000,")
    program = program.replace("val_check_interval=4", "val_check_interval=10_000")
    note = (
        "    Path(output).with_name(f'pid_{os.environ[\"RANK\"]}').write_text(str(os.getpid()))\n"
    )
    program = program.replace("    module =", f"{note}    module =", 1)
    script.write_text(f"import os\n{program}")
    project = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, str(script), str(root), str(output), "", ""],
        env={"PYTHONPATH": str(project), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not (output / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid_1").read_text()), signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "EndedBySignal: SIGTERM" in errors
    saved = torch.load(output / "last.ckpt", weights_only=True)["global_step"]
    newest = max(int(path.stem[5:]) for path in (output / "checkpoints").iterdir())
    assert saved in (newest, newest + 1)
    assert not (output / "last.pt").exists()
