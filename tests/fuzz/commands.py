"""Malformed configurations and options of every command."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case, command
from tests.support.tiny_training import OVERRIDES, make_dataset
from vss_models.training.configs import config_files, config_names

_VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    1e400,
    float("nan"),
    10**30,
    "text",
    "",
    [],
    [0],
    ["a", "b"],
    {},
    {"a": 1},
    True,
    "../../etc/passwd",
    "!!python/object/apply:os.system ['true']",
    "\0",
)


_NAMES = [name for name in config_names() if name.endswith("_synthetic")]
_SHORT = {
    "data": {
        "offsets": [-3, -2, -1],
        "train_transform": {"scale": [96, 96], "crop": [96, 96]},
        "evaluation_transform": {"scale": [96, 96]},
    },
    "model": {"overrides": OVERRIDES},
    "trainer": {"val_check_interval": 1, "limit_val_batches": 1, "limit_test_batches": 1},
}
"""Settings with which a run takes a second."""


def configurations(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Configuration files with damaged text, wrong values, missing or unknown keys.

    There are data, so that what is not refused is run: one step and the evaluation of one frame.
    """
    root = make_dataset(folder / "data_set")
    while True:
        name = _NAMES[int(rng.integers(len(_NAMES)))]
        command_name = ("fit", "test", "validate")[int(rng.integers(3))]
        case = f"{rng.integers(1 << 60):x}"
        path = folder / f"{case}.yaml"
        tree: dict[str, Any] = {}
        for part in (*(yaml.safe_load(file.read_bytes()) for file in config_files(name)), _SHORT):
            _merge(tree, part)
        if rng.random() < 0.3:
            kind, content = damaged(yaml.safe_dump(tree).encode(), rng)
            clues = [f"vss {command_name}: "]
        else:
            kind = _spoil(tree, rng)
            content = yaml.safe_dump(tree).encode()
            # What was changed; of a whole group that is gone, what it would have set.
            *groups, changed = kind.split(" ")[0].removesuffix("_").split(".")
            clues = [changed] if groups else [changed, "max_steps"]
        path.write_bytes(content)
        arguments = [command_name, "--config", str(path), "--data.root", str(root)]
        # Settings that are not wrong at any number, but may take for ever.
        arguments += ["--trainer.max_steps=1", "--data.num_workers=0", "--trainer.accelerator=cpu"]
        arguments += ["--trainer.enable_progress_bar=false", f"--output={folder / case}"]
        arguments += [] if command_name == "fit" else ["--random_weights=true"]
        yield Case(
            f"{command_name} {name}: {kind}",
            lambda arguments=arguments: command(arguments),
            tuple(clues),
        )


def options(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Options of the other commands with missing, doubled or senseless values."""
    nowhere, out = str(folder / "nowhere"), str(folder / "out")
    known: dict[str, list[list[str]]] = {
        "segment": [
            [nowhere],
            ["--checkpoint", nowhere],
            ["--out", out],
            ["--size", "64", "64"],
            ["--offsets", "-1"],
            ["--rate", "5"],
            ["--device", "cpu"],
            ["--opacity", "0.5"],
            ["--model", "mrcfa_b0"],
            ["--random-weights"],
            ["--camera", nowhere],
            ["--label-mapping", "vspw"],
        ],
        "export": [
            ["--checkpoint", nowhere],
            ["--out", f"{out}.onnx"],
            ["--size", "64", "64"],
            ["--streaming"],
            ["--model", "cffm_b0"],
        ],
        "synthesize": [
            [str(folder / "set")],
            ["--num-train", "0"],
            ["--frames", "1"],
            ["--size", "16", "16"],
            ["--seed", "-1"],
        ],
        "configs": [["--all"]],
        "info": [["--all"]],
    }
    while True:
        name = list(known)[int(rng.integers(len(known)))]
        chosen = [group for group in known[name] if rng.random() < 0.6]
        if name == "synthesize":
            chosen.insert(0, ["--num-train", "0", "--num-val", "1"])  # a whole set takes long
        arguments = [name, *(word for group in chosen for word in group)]
        for _ in range(int(rng.integers(1, 3))):
            words = ("-1", "nan", "1e99", "", "x", "--", "--what", "ü", "\n", "999999999999")
            place = int(rng.integers(1, len(arguments) + 1))
            arguments.insert(place, words[int(rng.integers(len(words)))])
        yield Case(
            " ".join(arguments),
            lambda arguments=arguments: command(arguments),
            (f"vss {name}",),
        )


def _merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    """Writes the settings of one tree over those of another."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)


def _spoil(tree: dict[str, Any], rng: np.random.Generator) -> str:
    """Changes one entry of a tree of settings."""
    keys = list(tree)
    key = keys[int(rng.integers(len(keys)))]
    below = tree[key]
    if isinstance(below, dict) and below and rng.random() < 0.8:
        return f"{key}.{_spoil(below, rng)}"
    choice = rng.random()
    if choice < 0.1:
        del tree[key]
        return f"{key} removed"
    if choice < 0.2:
        tree[f"{key}_"] = tree.pop(key)
        return f"{key} renamed"
    tree[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    return f"{key} = {tree[key]!r}"
