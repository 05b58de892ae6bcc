"""A run that was interrupted must end with the very weights of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_training import (
    assert_same_state,
    make_data,
    make_module,
    run,
)
from vss_models.checkpoints import load_model
from vss_models.training import RunCheckpoints, VideoDataModule
from vss_models.training.checkpoint_io import AtomicCheckpointIO

STEPS = 6


@pytest.fixture(scope="module")
def whole_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps in one go, two batches each, with a checkpoint every second step."""
    output = tmp_path_factory.mktemp("whole")
    run(
        make_module(),
        make_data(root),
        output,
        STEPS,
        accumulate_grad_batches=2,
        checkpoints=RunCheckpoints(every_n_steps=2, keep=3),
    )
    return output


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [2, 4])
def test_resumed_run_is_bitwise_the_same(
    root: Path, whole_run: Path, tmp_path: Path, step: int, workers: int
) -> None:
    """With workers, clips that were fetched ahead but not used must not be lost."""
    run(
        make_module(),
        make_data(root, num_workers=workers),
        tmp_path,
        STEPS,
        accumulate_grad_batches=2,
        resume=whole_run / "checkpoints" / f"step_{step}.ckpt",
    )
    assert_same_state(whole_run / "last.ckpt", tmp_path / "last.ckpt")


def test_steps_change_the_weights(whole_run: Path) -> None:
    """Otherwise equal weights would prove nothing."""
    states = [
        torch.load(whole_run / "checkpoints" / f"step_{step}.ckpt", weights_only=True)["state_dict"]
        for step in (2, 4, 6)
    ]
    key = "model.head.classifier.weight"
    assert not torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[1][key], states[2][key])


def test_finished_run_can_be_prolonged(root: Path, whole_run: Path, tmp_path: Path) -> None:
    module = make_module()
    run(
        module,
        make_data(root),
        tmp_path,
        STEPS + 1,
        accumulate_grad_batches=2,
        resume=whole_run / "last.ckpt",
    )
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == STEPS + 1
    # Two clips a batch and two batches a step: the stream went on where it stood.
    assert content["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [
        {"position": 4 * (STEPS + 1), "seed": 0, "num_items": 3}
    ]


def test_keeps_the_newest_checkpoints(root: Path, tmp_path: Path) -> None:
    run(
        make_module("segformer_b0"),
        make_data(root, offsets=[]),
        tmp_path,
        5,
        checkpoints=RunCheckpoints(every_n_steps=1, keep=2),
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_4.ckpt",
        "step_5.ckpt",
    ]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def test_the_model_file_has_the_weights_and_names(whole_run: Path, root: Path) -> None:
    model = load_model(whole_run / "last.pt")
    state = torch.load(whole_run / "last.ckpt", weights_only=True)["state_dict"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{key}"]), key
    assert model.trained_on.class_names == make_data(root).class_table().names


def test_refuses_a_folder_with_a_run(root: Path, whole_run: Path) -> None:
    with pytest.raises(FileExistsError, match=r"last\.ckpt exists: continue that run"):
        run(make_module(), make_data(root), whole_run, STEPS)


@pytest.mark.parametrize(
    ("module_settings", "data_settings", "message"),
    [
        ({"seed": 5}, {}, "seed=0, this one has 5"),
        ({"overrides": None}, {}, "overrides="),
        ({}, {"seed": 5}, "had seed=0, this one has 5"),
    ],
)
def test_refuses_to_resume_another_run(
    root: Path,
    whole_run: Path,
    tmp_path: Path,
    module_settings: dict[str, object],
    data_settings: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        run(
            make_module(**module_settings),
            make_data(root, **data_settings),
            tmp_path,
            STEPS,
            resume=whole_run / "last.ckpt",
        )


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"value": 1}, path)
    with pytest.raises(AttributeError):
        writer.save_checkpoint({"value": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_stream_position_belongs_to_its_data(root: Path) -> None:
    loader = make_data(root).train_dataloader()
    state = loader.state_dict()
    with pytest.raises(ValueError, match="num_items=4, this one has 3"):
        loader.load_state_dict({**state, "num_items": 4})
    assert isinstance(make_data(root), VideoDataModule)
