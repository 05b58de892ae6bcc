"""The folder of a run: who may write into it, and which of its checkpoints to continue from."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from vss_models.atomic import atomic_write, remove_leftovers
from vss_models.checkpoints import CheckpointError, read_checkpoint

try:
    import fcntl
except ModuleNotFoundError:  # a system without such locks: two runs in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
LAST_MODEL = "last.pt"
CHECKPOINT_FOLDER = "checkpoints"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"

_WORDS = {"last": LAST_CHECKPOINT, "best": BEST_CHECKPOINT}
_STEP_NAME = re.compile(r"step_(\d+)\.ckpt")


def find_checkpoint(folder: Path, wanted: Path | str | None) -> Path | None:
    """Finds the checkpoint to continue a run from.

    Args:
        folder: Folder of the run.
        wanted: A file; "last" or "best" for the folder's own, where "last" starts anew if there is
            none; or None. A Slurm job that was requeued continues from "last" by itself.

    Returns:
        The file, or None to start anew.

    Raises:
        FileNotFoundError: If the file, or a best one, is not there.
    """
    if wanted is None and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
        wanted = "last"
    if wanted is None:
        return None
    if str(wanted) not in _WORDS:
        path = Path(wanted)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        return path
    path = folder / _WORDS[str(wanted)]
    if path.exists():
        return path
    if str(wanted) == "last":
        return None
    raise FileNotFoundError(f"{path}: this run has no best checkpoint yet; use last")


def check_run_folder(folder: Path, checkpoint: Path | None) -> None:
    """Refuses to train into the folder of another run.

    Args:
        folder: Folder of the run to start.
        checkpoint: What it continues from, or None.

    Raises:
        FileExistsError: If the folder holds a run that is not the one to be continued.
    """
    last = folder / LAST_CHECKPOINT
    if not last.exists():
        return
    own = checkpoint is not None and folder.resolve() in checkpoint.resolve().parents
    if not own:
        raise FileExistsError(
            f"{last} exists: continue that run with --ckpt_path {last} (or just last), or choose "
            "another output folder"
        )


def step_checkpoints(folder: Path) -> list[Path]:
    """A run's ``step_<n>.ckpt`` files by step; files of other names are not the run's."""
    found = [
        (int(match[1]), path)
        for path in (folder / CHECKPOINT_FOLDER).glob("step_*.ckpt")
        if (match := _STEP_NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def newest_intact(damaged: Path) -> Path | None:
    """Finds the newest whole checkpoint in the run folder of a damaged one.

    Args:
        damaged: A checkpoint, in the run's folder or in its ``checkpoints``.

    Returns:
        The file, or None if there is none.
    """
    folder = damaged.parent.parent if damaged.parent.name == CHECKPOINT_FOLDER else damaged.parent
    candidates = [*step_checkpoints(folder), folder / LAST_CHECKPOINT]
    candidates = [path for path in candidates if path.is_file() and path != damaged]
    for path in sorted(candidates, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            read_checkpoint(path)
        except (CheckpointError, OSError):
            continue
        return path
    return None


class RunLogger(TensorBoardLogger):
    """TensorBoard's log, which is not begun before the training is.

    Lightning opens a log before anything is checked, and a start that is refused would leave it.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder, name="", version="")
        self._has_started = False

    def start(self) -> None:
        """Opens the log."""
        self._has_started = True

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; None before the start and on all processes but the first."""
        if not self._has_started or getattr(rank_zero_only, "rank", 0) != 0:
            return None
        return super().experiment

    def save(self) -> None:
        """Writes what TensorBoard keeps beside its log."""
        if self._has_started:
            super().save()


def _lock_when_free(lock: int) -> None:
    """Locks a file; waits for what a killed run leaves behind.

    Loading processes inherit a run's lock and need some seconds to see that the run was killed.

    Raises:
        BlockingIOError: A living process, or one of another machine, holds the lock.
    """
    deadline = time.monotonic() + 20
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = re.match(r"process (\d+) on (.+)", os.pread(lock, 200, 0).decode())
            if holder is None or holder[2] != socket.gethostname():
                raise
            if Path(f"/proc/{holder[1]}").exists() or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


class RunFolder(Callback):
    """Keeps other runs out of the run's folder while it trains.

    Args:
        config: The run's configuration as text, which is kept in ``config.yaml``; that of a
            continued run stays, and the new one is kept as ``config_from_step_<n>.yaml``.
    """

    def __init__(self, config: str | None = None) -> None:
        self._config = config
        self._lock: int | None = None
        self._made: list[Path] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Locks the folder, and removes what killed writers left in it.

        Raises:
            BlockingIOError: If another process trains into it.
        """
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        self._take(folder)
        for name in (LAST_CHECKPOINT, BEST_CHECKPOINT, LAST_MODEL):
            remove_leftovers(folder, name)
        remove_leftovers(folder / CHECKPOINT_FOLDER, "step_*.ckpt")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the configuration and opens the log, now that the run is sure to start."""
        self._made = []
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.start()
        if self._config is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir, CONFIG_FILE)
        if trainer.global_step and path.exists():
            path = path.with_name(f"config_from_step_{trainer.global_step}.yaml")
        with atomic_write(path) as temporary:
            temporary.write_text(self._config, encoding="utf-8")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets others in again."""
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Lets others in again."""
        self._release()

    def _take(self, folder: Path) -> None:
        if fcntl is None:
            return
        path = folder / LOCK_FILE
        self._made = [made for made in (path, folder, *folder.parents) if not made.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_when_free(lock)
        except BlockingIOError as error:
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(lock)
            self._made = []
            raise BlockingIOError(
                f"{holder} is training into {folder}: wait for it, or choose another output folder"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        # The system lets go of it however this process ends.
        self._lock = lock

    def _release(self) -> None:
        # A run that did not start leaves no trace.
        for made in self._made:
            if made.is_dir():
                if any(made.iterdir()):
                    break
                made.rmdir()
            else:
                made.unlink()
        self._made = []
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None


__all__ = [
    "BEST_CHECKPOINT",
    "CHECKPOINT_FOLDER",
    "CONFIG_FILE",
    "LAST_CHECKPOINT",
    "LAST_MODEL",
    "RunFolder",
    "RunLogger",
    "check_run_folder",
    "find_checkpoint",
    "newest_intact",
    "step_checkpoints",
]
