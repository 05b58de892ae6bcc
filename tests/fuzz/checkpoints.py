"""Malformed checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case
from vss_models import TrainedOn, create_model
from vss_models.checkpoints import open_model, save_model

_SMALL = {"dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "embed_dim": 16}
_VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    10**9,
    10**30,
    float("nan"),
    "",
    "text",
    "x" * 100_000,
    [],
    [0, 0, 0, 0],
    [10**7] * 4,
    ["a"] * 4,
    {},
    {1: 2},
    {"checkpoint_path": "/etc/passwd"},
    True,
    (1, 2, 3),
    [[999, 0, 0]] * 5,
)


def checkpoints(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Checkpoints with damaged bytes, wrong settings, and tensors that are missing or wrong."""
    whole = {}
    for name in ("mrcfa_b0", "segformer_b0"):
        torch.manual_seed(1)
        model = create_model(name, 5, **_SMALL).eval()
        names, colours = tuple("abcde"), tuple((number, 2, 3) for number in range(5))
        model.trained_on = TrainedOn(names, colours, (-3, -2, -1) if "mrcfa" in name else ())
        save_model(model, folder / f"{name}.pt")
        whole[name] = (folder / f"{name}.pt").read_bytes()
    while True:
        name = list(whole)[int(rng.integers(len(whole)))]
        path = folder / f"{rng.integers(1 << 60):x}.pt"
        if rng.random() < 0.4:
            kind, content = damaged(whole[name], rng)
            path.write_bytes(content)
        else:
            tree = torch.load(folder / f"{name}.pt", weights_only=True)
            kind = _spoil_tensor(tree, rng) if rng.random() < 0.4 else _spoil_setting(tree, rng)
            torch.save(tree, path)
        original = whole[name]
        yield Case(
            f"{name}: {kind}",
            lambda path=path, original=original: _use(path, original),
            (str(path),),
        )


@torch.no_grad()
def _use(path: Path, original: bytes) -> None:
    model = open_model(path)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    image = torch.zeros(1, 3, 64, 64)
    logits = model.single_frame(image)
    assert logits.shape[:2] == (1, model.num_classes)
    assert torch.isfinite(logits).all()
    content = path.read_bytes()
    # Bytes that differ and are accepted must at least not be weights: those have a checksum.
    if len(content) == len(original) and content != original:
        whole = torch.load(path, weights_only=True)["state_dict"]
        for key, tensor in whole.items():
            assert torch.equal(tensor, model.state_dict()[key])
    path.unlink()


def _pick(tree: dict[str, Any], rng: np.random.Generator) -> str:
    return list(tree)[int(rng.integers(len(tree)))]


def _spoil_setting(tree: dict[str, Any], rng: np.random.Generator) -> str:
    below = tree["overrides"] if rng.random() < 0.5 else tree
    key = _pick(below, rng)
    if rng.random() < 0.2:
        del below[key]
        return f"{key} removed"
    below[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    return f"{key} = {str(below[key])[:40]}"


def _spoil_tensor(tree: dict[str, Any], rng: np.random.Generator) -> str:
    state = tree["state_dict"]
    key = _pick(state, rng)
    tensor = state[key]
    changes = {
        "removed": None,
        "nan": torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else "x",
        "infinite": torch.full_like(tensor, float("inf")) if tensor.is_floating_point() else 0,
        "flat": tensor.flatten(),
        "empty": tensor[:0] if tensor.dim() else tensor[None],
        "complex": tensor.to(torch.complex64),
        "integers": tensor.to(torch.int8),
        "a number": 3,
        "sparse": tensor.to_sparse() if tensor.dim() else tensor[None],
    }
    change = _pick(changes, rng)
    if change == "removed":
        del state[key]
    else:
        state[key] = changes[change]
    return f"{key} {change}"
