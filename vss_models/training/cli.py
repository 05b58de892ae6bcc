"""`vss fit`, `vss validate` and `vss test`: Lightning's command line for this package's runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vss_models.checkpoints import Checkpoint, read_checkpoint
from vss_models.commands.errors import end_with_usage_error
from vss_models.data import check_root
from vss_models.training.callbacks import SampleOverlays, TrainingProgressBar
from vss_models.training.checkpoint_defaults import (
    check_classes,
    count_classes,
    with_checkpoint_defaults,
)
from vss_models.training.configs import expand_config_arguments
from vss_models.training.data import VideoDataModule
from vss_models.training.interruption import stops_become_signals
from vss_models.training.module import SegmentationModule
from vss_models.training.quiet import quiet_libraries
from vss_models.training.run import trainer_parts
from vss_models.training.run_checkpoints import BestCheckpoint, RunCheckpoints
from vss_models.training.run_folder import RunFolder, check_run_folder, find_checkpoint
from vss_models.training.settings_check import complaint_about, complaint_about_files
from vss_models.training.writer import ReportWriter

_MINOR_VERSION = tuple(int(part) for part in metadata.version("jsonargparse").split(".")[:2])
_SKIP_NONE = "skip_unset" if _MINOR_VERSION >= (4, 49) else "skip_none"
"""jsonargparse's name for leaving out settings that are null, as if they were the defaults."""


class _Parser(LightningArgumentParser):
    """Says what is wrong in one line; the usage of a training would be a hundred before it."""

    program = "vss"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        end_with_usage_error(self.program, message)


class TrainingCLI(LightningCLI):
    """Parses a configuration, overridden by the command line, and runs the trainer."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        super().__init__(
            SegmentationModule,
            VideoDataModule,
            save_config_callback=None,  # RunFolder keeps it, once the run has started
            trainer_defaults={"use_distributed_sampler": False},
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "vss"},
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes the parser of the program or of one of its commands."""
        parser = _Parser(**kwargs)
        parser.program = f"vss {self._arguments[0]}"
        # A misspelt option would be taken for a long one that begins alike.
        parser.allow_abbrev = False
        parser.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="A YAML file or a name of `vss configs`.",
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods on offer and those of their arguments that are not options."""
        commands = LightningCLI.subcommands()
        commands.pop("predict")
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's own settings and ties together those that must agree."""
        parser.add_argument(
            "--output", type=str, default="runs/unnamed", help="Folder for all files of the run."
        )
        parser.add_argument("--seed", type=int, default=0, help="Seed of all randomness.")
        parser.add_argument(
            "--checkpoint",
            type=str | None,
            default=None,
            help="Weights to start from: a model file, a run's checkpoint or a released file.",
        )
        parser.add_argument(
            "--random_weights",
            type=bool,
            default=False,
            help="Evaluate an untrained model, to try the program.",
        )
        parser.add_lightning_class_args(RunCheckpoints, "checkpoints")
        parser.add_lightning_class_args(SampleOverlays, "overlays")
        parser.add_lightning_class_args(ReportWriter, "report")
        parser.link_arguments("output", "trainer.default_root_dir")
        # One seed: Lightning's own option would be a second one beside it.
        parser.link_arguments("seed", "seed_everything", compute_fn=lambda seed: False)
        parser.link_arguments("seed", "data.seed")
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("checkpoint", "model.checkpoint")
        parser.link_arguments(
            ("data.root", "data.label_mapping", "data.num_classes"),
            "model.num_classes",
            compute_fn=count_classes,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments this object was made with.

        An evaluation takes from its checkpoint what neither they nor a file of the user's say.
        """
        self.config = parser.parse_args(self._arguments)
        self._evaluated: Checkpoint | None = None
        path = self._evaluated_file()
        if path is not None:
            self._evaluated = read_checkpoint(path)
            self.config = parser.parse_args(
                with_checkpoint_defaults(self._arguments, self._evaluated)
            )

    def _parse_ckpt_path(self) -> None:
        """Leaves the checkpoint alone, which Lightning reads for settings that ours do not hold.

        It would fail on a damaged file without its name, before the file is read and checked.
        """

    def _evaluated_file(self) -> Path | None:
        """The file of weights that is to be evaluated; None in a training."""
        command = self.config.subcommand
        if command == "fit":
            return None
        config = self.config[command]
        path = find_checkpoint(Path(config.output), config.ckpt_path) or config.checkpoint
        # A sharded checkpoint is a folder, which only the strategy that wrote it can read.
        return None if path is None or Path(path).is_dir() else Path(path)

    def before_instantiate_classes(self) -> None:
        """Refuses what cannot start, before a model is built or a file written.

        Raises:
            FileExistsError: If the output folder holds another run.
            FileNotFoundError: If there is no such checkpoint or data set.
            ValueError: If the classes of the data are not those of the list or the checkpoint.
            SystemExit: With status 2 if data or weights are not named, or a setting has no value.
        """
        config, parser = self.config[self.subcommand], self._parser(self.subcommand)
        complaint = complaint_about(config)
        if complaint is not None:
            parser.error(complaint)
        if config.data.root is None:
            parser.error(
                "data.root is not set: give the folder of a data set in the VSPW layout, "
                "--data.root FOLDER"
            )
        checkpoint = find_checkpoint(Path(config.output), config.ckpt_path)
        config.ckpt_path = None if checkpoint is None else str(checkpoint)
        has_weights = config.checkpoint is not None or config.ckpt_path is not None
        if self.subcommand != "fit" and not has_weights and not config.random_weights:
            parser.error(
                "--checkpoint is missing: a model without trained weights labels at random "
                "(add --random_weights=true to try just that)"
            )
        data = config.data
        check_root(Path(data.root))
        check_classes(Path(data.root), data.label_mapping, data.num_classes, self._evaluated)
        if self.subcommand == "fit":
            check_run_folder(Path(config.output), checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Makes the trainer with the parts every run of this package has."""
        config = self.config_init[self.subcommand].trainer
        logger, callbacks = config.logger, config.callbacks
        if self.subcommand != "fit":
            # An evaluation writes its report; the log in the folder is that of the training.
            logger = logger or False
        else:
            text = self._parser("fit").dump(self.config["fit"], **{_SKIP_NONE: False})
            own: list[Callback] = [RunFolder(text)]
            if self.config["fit"].checkpoints.best:
                own.append(BestCheckpoint())
            callbacks = [*own, *(callbacks or [])]
        parts = trainer_parts(config.default_root_dir, callbacks, config.plugins, logger)
        if config.enable_progress_bar is not False:
            parts["callbacks"].append(TrainingProgressBar(refresh_rate=1))
        try:
            return super().instantiate_trainer(**parts, **kwargs)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a setting of the trainer is not valid: {error}") from error


def run_cli(arguments: Sequence[str]) -> None:
    """Runs one of the trainer's commands.

    Args:
        arguments: The command and its options, such as ``["fit", "--config", "mrcfa_b1_vspw"]``.

    Raises:
        EndedBySignal: If a signal ended the training; its state is saved.
        SystemExit: With status 2 if the options are not valid.
    """
    try:
        expanded = expand_config_arguments(arguments)
    except ValueError as error:
        print(f"vss {arguments[0]}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    complaint = complaint_about_files(expanded)
    if complaint is not None:
        end_with_usage_error(f"vss {arguments[0]}", complaint)
    with quiet_libraries(), stops_become_signals():
        TrainingCLI(expanded)
