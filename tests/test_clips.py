"""Which frames make a clip, against lists written out by hand and full enumeration."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vss_models.data.clips import (
    PUBLISHED_OFFSETS,
    check_offsets,
    draw_training_clip,
    evaluation_references,
    shortest_video,
)

PUBLISHED_TABLE = {
    0: (),
    1: (),
    2: (),
    3: (0, 1, 2),
    4: (0, 2, 3),
    5: (0, 2, 4),
    6: (0, 2, 4),
    7: (0, 3, 5),
    8: (0, 3, 6),
    9: (0, 3, 6),
    10: (1, 4, 7),
    11: (2, 5, 8),
    50: (41, 44, 47),
}

offset_lists = st.sets(st.integers(-30, -1), max_size=6).map(lambda chosen: tuple(sorted(chosen)))


@pytest.mark.parametrize(("target", "expected"), PUBLISHED_TABLE.items())
def test_published_evaluation_schedule(target, expected):
    assert evaluation_references(target, PUBLISHED_OFFSETS) == expected


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        # A second apart: no frame ever needs shrunken offsets.
        ((-3, -2, -1), [(), (), (), (0, 1, 2), (1, 2, 3), (2, 3, 4)]),
        # The newer reference would round up to the target, so it stays one before it.
        ((-9, -1), [(), (), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8)]),
        # All would round to the first frames, so they spread to the next free ones.
        ((-10, -9, -8), [(), (), (), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2)]),
        ((-2,), [(), (0,), (0,), (1,), (2,)]),
        ((), [(), (), ()]),
    ],
)
def test_evaluation_schedule_of_custom_offsets(offsets, expected):
    assert [evaluation_references(t, offsets) for t in range(len(expected))] == expected


@given(offsets=offset_lists, target=st.integers(0, 60))
def test_evaluation_references_are_distinct_past_frames(offsets, target):
    references = evaluation_references(target, offsets)
    if target < len(offsets):
        assert references == ()
        return
    assert len(references) == len(offsets)
    assert all(frame in range(target) for frame in references)
    assert list(references) == sorted(set(references))
    if target >= shortest_video(offsets) - 1:
        assert references == tuple(target + offset for offset in offsets)
    else:
        assert references[0] == 0


@pytest.mark.parametrize(
    ("num_frames", "offsets"), [(12, (-9, -6, -3)), (10, (-9, -6, -3)), (5, (-3, -1)), (3, ())]
)
def test_training_clips_are_uniform_over_targets_and_directions(num_frames, offsets):
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    counts = Counter(draw_training_clip(num_frames, offsets, generator) for _ in range(draws))
    forwards = [(*(t + o for o in offsets), t) for t in range(-min(offsets, default=0), num_frames)]
    expected = Counter()
    for clip in forwards:
        expected[clip] += 1
        expected[tuple(num_frames - 1 - frame for frame in clip)] += 1
    assert set(counts) == set(expected)
    for clip, weight in expected.items():
        probability = weight / expected.total()
        deviation = (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[clip] - draws * probability) < 5 * deviation


def test_training_clip_from_the_shortest_video():
    generator = torch.Generator().manual_seed(0)
    clips = {draw_training_clip(10, PUBLISHED_OFFSETS, generator) for _ in range(40)}
    assert clips == {(0, 3, 6, 9), (9, 6, 3, 0)}
    assert shortest_video(PUBLISHED_OFFSETS) == 10
    with pytest.raises(ValueError, match="num_frames must be at least 10"):
        draw_training_clip(9, PUBLISHED_OFFSETS, generator)


@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        ((-3, 0), ValueError, "must be negative"),
        ((-3, -6), ValueError, r"strictly ascending.*write \(-6, -3\)"),
        ((-3, -3), ValueError, "strictly ascending"),
        ((-3.0,), TypeError, "must be integers"),
        ((True,), TypeError, "must be integers"),
    ],
)
def test_wrong_offsets(offsets, error, message):
    with pytest.raises(error, match=message):
        check_offsets(offsets)


def test_negative_target():
    with pytest.raises(ValueError, match="target"):
        evaluation_references(-1, PUBLISHED_OFFSETS)
