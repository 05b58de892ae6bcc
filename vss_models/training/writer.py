"""Writes what `vss test` finds: the report, and the predictions if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from vss_models.atomic import atomic_write
from vss_models.training.module import segmentation_module
from vss_models.training.report import REPORT_FILES, refuse_existing


class ReportWriter(Callback):
    """Prints and writes the report of a test, and the predictions if wanted.

    Args:
        folder: Where to write; None for ``evaluation`` in the run's folder.
        predictions: Whether to write ``result_submission/<video>/<frame>.png``, in which a pixel
            holds its class plus one (0 is void in VSPW).
        palette: Whether those files carry the classes' colours; grey files otherwise.
        overwrite: Whether existing files may be replaced.
    """

    def __init__(
        self,
        folder: Path | None = None,
        predictions: bool = False,
        palette: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.predictions = predictions
        self.palette = palette
        self.overwrite = overwrite

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses to mix with an earlier evaluation before any time is spent."""
        folder = self._folder(trainer)
        existing = [folder / name for name in REPORT_FILES]
        if self.predictions:
            existing.append(folder / "result_submission")
        # Every process looks before any writes.
        refuse_existing(existing, self.overwrite)
        trainer.strategy.barrier()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the labels of one frame."""
        if not self.predictions or "labels" not in outputs:
            return
        folder = self._folder(trainer) / "result_submission" / batch["video"]
        palette = segmentation_module(trainer).classes.palette() if self.palette else None
        write_submission(outputs["labels"], folder / f"{batch['frame']}.png", palette)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints and writes the figures; they are of all processes together."""
        report = segmentation_module(trainer).report
        if trainer.is_global_zero and report is not None:
            report.print()
            report.write(self._folder(trainer), self.overwrite)

    def _folder(self, trainer: pl.Trainer) -> Path:
        return self.folder or Path(trainer.default_root_dir, "evaluation")


def write_submission(labels: Tensor, path: Path, palette: np.ndarray | None = None) -> None:
    """Writes predicted classes as the VSPW benchmark expects them.

    Args:
        labels: (H, W) class numbers below 255.
        path: The PNG file; its folder is made if need be.
        palette: (256, 3) uint8 colours of the classes, or None for a grey file.

    Raises:
        ValueError: If a class number does not fit.
    """
    values = labels.cpu().numpy().astype(np.int64) + 1
    if values.min() < 1 or values.max() > 255:
        raise ValueError(
            f"labels must be class numbers 0..254 to fit an 8-bit file, got {values.min() - 1} .. "
            f"{values.max() - 1}"
        )
    image = Image.fromarray(values.astype(np.uint8))
    if palette is not None:
        image.putpalette(np.roll(palette, 1, axis=0).astype(np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    # One a frame: waiting for the disk each time would cost more than it protects.
    with atomic_write(path, sync=False) as temporary:
        image.save(temporary, format="PNG")
