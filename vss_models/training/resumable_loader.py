"""Training batches that a resumed run continues at the very next clip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from vss_models.data.loaders import ClipSampler

# Longer than any run: the trainer sees one epoch, which only the number of steps ends.
ENDLESS = 2**40


class ResumableLoader:
    """A data loader that knows how far it has been read.

    Lightning stores :meth:`state_dict` in its checkpoints. The position counts what the training
    loop has taken, not what workers have fetched ahead.

    Args:
        loader: A loader over a :class:`vss_models.data.ClipSampler`.

    Raises:
        TypeError: If the loader has another sampler.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader.sampler, ClipSampler):
            raise TypeError(f"loader needs a ClipSampler, got {type(loader.sampler).__name__}")
        self.loader = loader
        self.clips = loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        clips_per_batch = (self.loader.batch_size or 1) * self.clips.world_size
        for batch in self.loader:
            self.clips.start += clips_per_batch
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position in the stream, over all processes, and what the stream depends on."""
        return {
            "position": self.clips.start,
            "seed": self.clips.seed,
            "num_items": self.clips.num_items,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a saved position.

        Raises:
            ValueError: If the state belongs to another seed or data set.
        """
        for name in ("seed", "num_items"):
            current = getattr(self.clips, name)
            if state[name] != current:
                raise ValueError(
                    f"the run to resume had {name}={state[name]}, this one has {current}; resume "
                    "with the same data set and seed, or start a new run from its weights"
                )
        self.clips.start = state["position"]
