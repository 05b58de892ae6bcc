"""Malformed configurations and options of every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case, command
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


def configurations(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Configuration files with damaged text, wrong values, missing or unknown keys."""
    known = config_names()
    while True:
        name = known[int(rng.integers(len(known)))]
        command_name = ("fit", "test", "validate")[int(rng.integers(3))]
        path = folder / f"{rng.integers(1 << 60):x}.yaml"
        files = config_files(name)
        content = files[int(rng.integers(len(files)))].read_bytes()
        if rng.random() < 0.3:
            kind, content = damaged(content, rng)
        else:
            tree = yaml.safe_load(content)
            kind = _spoil(tree, rng)
            content = yaml.safe_dump(tree).encode()
        path.write_bytes(content)
        arguments = [command_name, "--config", name, "--config", str(path)]
        # There are no data: whatever the configuration says, the command ends at once.
        arguments += ["--data.root", str(folder / "nowhere"), "--output", str(folder / "run")]
        yield Case(
            f"{command_name} {name}: {kind}",
            lambda arguments=arguments: command(arguments),
            (f"vss {command_name}: ",),
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
