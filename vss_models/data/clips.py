"""Which frames make a clip: drawn at random for training, by a fixed schedule for evaluation.

A clip is some reference frames, oldest first, followed by the target frame. References are given as
negative offsets from the target; the published models use (-9, -6, -3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

PUBLISHED_OFFSETS = (-9, -6, -3)


def check_offsets(offsets: Sequence[int]) -> tuple[int, ...]:
    """Check reference offsets and return them as a tuple.

    Args:
        offsets: Negative frame distances from the target, oldest first (strictly ascending). An
            empty sequence means that every frame stands alone.

    Raises:
        TypeError: An offset is not an integer.
        ValueError: An offset is not negative, or the order is not strictly ascending.
    """
    checked = tuple(offsets)
    for offset in checked:
        if isinstance(offset, bool) or not isinstance(offset, int):
            raise TypeError(f"offsets must be integers, got {offset!r} in {checked}")
        if offset >= 0:
            raise ValueError(
                f"offsets must be negative (references precede the target), got {offset} "
                f"in {checked}"
            )
    if any(older >= newer for older, newer in pairwise(checked)):
        raise ValueError(
            f"offsets must be strictly ascending, oldest reference first, got {checked}; "
            f"write {tuple(sorted(set(checked)))}"
        )
    return checked


def shortest_video(offsets: Sequence[int]) -> int:
    """Number of frames a video needs before a training clip can be drawn from it."""
    return 1 - min(offsets, default=0)


def draw_training_clip(
    num_frames: int, offsets: Sequence[int], generator: torch.Generator
) -> tuple[int, ...]:
    """Draw the frames of one training clip from a video.

    With probability 0.5 the video is played backwards first; the target is then uniform over all
    frames that have their references.

    Args:
        num_frames: Length of the video.
        offsets: Reference offsets, oldest first (see :func:`check_offsets`).
        generator: Source of all randomness.

    Returns:
        Frame numbers in the video as stored: the references, oldest in playing order first, then
        the target.

    Raises:
        ValueError: The video is shorter than :func:`shortest_video`.
    """
    offsets = check_offsets(offsets)
    first = shortest_video(offsets) - 1
    if num_frames <= first:
        raise ValueError(
            f"num_frames must be at least {first + 1} for the offsets {offsets}, got {num_frames}; "
            "leave such a video out or use shorter offsets"
        )
    backwards = bool(torch.rand((), generator=generator) < 0.5)
    target = int(torch.randint(first, num_frames, (), generator=generator))
    played = [target + offset for offset in offsets] + [target]
    return tuple(num_frames - 1 - frame for frame in played) if backwards else tuple(played)


def evaluation_references(target: int, offsets: Sequence[int]) -> tuple[int, ...]:
    """Reference frames of one target frame at evaluation.

    With R offsets, of which the oldest is -m:

    - ``target >= m``: the references are ``target + offset``.
    - ``target < R``: there are fewer past frames than references, so none are used, and the frame
      is labelled on its own (the empty tuple is returned).
    - in between, the offsets shrink in proportion to the history there is: reference i is
      ``ceil(target * (m + offset_i) / m)``, so the oldest is frame 0. Where that would name a frame
      twice or the target itself, references move to the next free past frame.

    For the published offsets (-9, -6, -3) this is the published table: frames 0..2 alone, then
    (0,1,2), (0,2,3), (0,2,4), (0,2,4), (0,3,5), (0,3,6) for frames 3..8.

    Args:
        target: Frame number of the target, from 0.
        offsets: Reference offsets, oldest first (see :func:`check_offsets`).

    Returns:
        Distinct past frame numbers, ascending, one per offset; or ``()`` for a frame on its own.

    Raises:
        ValueError: `target` is negative.
    """
    offsets = check_offsets(offsets)
    if target < 0:
        raise ValueError(f"target must be a frame number from 0, got {target}")
    if target < len(offsets):
        return ()
    span = -min(offsets, default=0)
    if target >= span:
        return tuple(target + offset for offset in offsets)
    references: list[int] = []
    for position, offset in enumerate(offsets):
        shrunk = -(-target * (span + offset) // span)
        after_previous = references[-1] + 1 if references else 0
        room_for_later = target - len(offsets) + position
        references.append(min(max(shrunk, after_previous), room_for_later))
    return tuple(references)
