"""Every malformed input ends in a clear error or a right answer, none in anything else.

    python -m pytest -m slow -s tests/fuzz      1000 inputs, and the table of how they ended
    VSS_FUZZ_SEED=7 ...                         1000 others

The ordinary tests run the first few of each area.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import harness
from tests.fuzz.checkpoints import checkpoints
from tests.fuzz.commands import configurations, options
from tests.fuzz.data_sets import data_sets
from tests.fuzz.harness import Case, judge, judge_all, table
from tests.fuzz.operators import operators
from tests.fuzz.pictures import images, masks
from tests.fuzz.videos import videos

SEED = int(os.environ.get("VSS_FUZZ_SEED", "0"))
Area = Callable[[np.random.Generator, Path], Iterator[Case]]
AREAS: dict[str, tuple[Area, int]] = {
    "images": (images, 170),
    "masks": (masks, 130),
    "videos": (videos, 160),
    "data sets": (data_sets, 120),
    "configurations": (configurations, 90),
    "options": (options, 60),
    "checkpoints": (checkpoints, 120),
    "operator arguments": (operators, 150),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options may name any file: one that happens to be written must not be the checkout's."""
    folder = tmp_path / "working_folder"
    folder.mkdir()
    monkeypatch.chdir(folder)


def cases(area: str, folder: Path, count: int) -> Iterator[Case]:
    generate = AREAS[area][0]
    return islice(generate(np.random.default_rng([SEED, list(AREAS).index(area)]), folder), count)


@pytest.mark.parametrize("area", AREAS)
def test_a_few_malformed_inputs(area: str, tmp_path: Path) -> None:
    _, reports = judge_all(cases(area, tmp_path, 6))
    assert not reports, "\n".join(reports)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_malformed_inputs(tmp_path: Path) -> None:
    assert sum(count for _, count in AREAS.values()) == 1000
    counts: dict[str, Counter[str]] = {}
    reports = []
    for area, (_, count) in AREAS.items():
        folder = tmp_path / area.replace(" ", "_")
        folder.mkdir()
        counts[area], found = judge_all(cases(area, folder, count))
        reports += [f"{area}: {report}" for report in found]
    print(f"\nseed {SEED}\n{table(counts)}")
    assert not reports, "\n".join(reports)


def fail(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        (lambda: None, harness.RIGHT),
        (fail(ValueError("a.png: broken")), harness.CLEAR),
        (fail(ValueError("broken")), harness.UNCLEAR),
        (fail(AssertionError("other pixels")), harness.WRONG),
        (fail(KeyError("a.png")), harness.TRACEBACK),
        (fail(SystemExit(3)), harness.TRACEBACK),
        (lambda: time.sleep(5), harness.HANG),
    ],
)
def test_how_an_input_ended_is_told(run: Callable[[], object], outcome: str) -> None:
    assert judge(Case("a case", run, ("a.png",)), patience=1).outcome == outcome


def test_a_command_that_fails_without_a_message_of_its_own_is_told() -> None:
    case = Case("no such command", lambda: harness.command(["fly"]), ("vss fly",))
    assert judge(case).outcome == harness.UNCLEAR
    case = Case("help", lambda: harness.command(["--help"]), ())
    assert judge(case).outcome == harness.RIGHT


def test_the_table_counts_areas_and_their_sum() -> None:
    counts = {"images": Counter({harness.CLEAR: 3, harness.HANG: 1}), "masks": Counter(())}
    lines = [line.split() for line in table(counts).splitlines()]
    assert lines[1] == ["images", "4", "0", "3", "0", "0", "0", "1"]
    assert lines[3] == ["total", "4", "0", "3", "0", "0", "0", "1"]
