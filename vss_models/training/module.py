"""The training step, the evaluation step and what a checkpoint says about the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from vss_kernels import upsample_argmax
from vss_models.checkpoints import (
    RUN_KEY,
    CheckpointError,
    LoadReport,
    load_backbone,
    load_pretrained,
)
from vss_models.data import ClassTable, item_generator, numbered_classes
from vss_models.heads.segformer import ClipLogits
from vss_models.inference.compile import AUTOMATIC, check_backend
from vss_models.inference.graphs import CudaCapture
from vss_models.losses import ClipLoss
from vss_models.model import TrainedOn
from vss_models.registry import create_model
from vss_models.training.data import IDLE, VideoDataModule
from vss_models.training.evaluate import Evaluator
from vss_models.training.optim import OptimizerSettings, build_optimizer
from vss_models.training.report import EvaluationReport
from vss_models.training.step import TrainingStep, chosen_step
from vss_models.training.tf32 import Tf32
from vss_models.training.trained_settings import network_precision, warn_of_other_settings


class SegmentationModule(pl.LightningModule):
    """A model of this package with its loss and optimizer.

    All randomness of a run is a function of ``seed`` and of the number of batches so far, so that a
    run resumed from a checkpoint continues exactly as it would have.

    Args:
        name: Model name, such as "mrcfa_b1".
        num_classes: Number of classes.
        overrides: Settings of the model that differ from the name's own, see
            :func:`vss_models.create_model`.
        checkpoint: Weights to start from: a file this package or a run of it wrote, or a released
            one. To train, it may be of other classes or of another head, see
            :func:`vss_models.checkpoints.load_pretrained`. To continue a run, give its checkpoint
            to the trainer instead.
        backbone_weights: Weights of the encoder to start from: an ImageNet file or any file of a
            model with that encoder, see :func:`vss_models.checkpoints.load_backbone`.
        optimizer: Learning rates, weight decay and schedule.
        auxiliary_weight: Weight of the per-frame loss beside the target's.
        label_smoothing: Fraction of the target probability spread over all classes.
        class_weights: One weight a class, or None.
        seed: Seed of the initial weights and of dropout.
        compile: How forward, loss and backward run. None runs the model as it is. "inductor"
            compiles them, see :func:`vss_models.inference.compile.compiled`; compiled dropout draws
            other numbers. "cuda-graph" also replays them, and the optimizer's update, as CUDA
            graphs. "auto" is "cuda-graph" on a CUDA device and None elsewhere, or, with a logged
            reason, where the trainer's settings do not allow it; a model that cannot be compiled is
            replayed uncompiled then. Evaluation is not compiled.
        tf32: Whether a GPU may round float32 products to TF32 in training steps. Evaluation does
            not, whatever this says.

    Raises:
        ValueError: If the model's name or settings are not valid, or a file does not fit the model.
    """

    def __init__(
        self,
        name: str = "mrcfa_b1",
        num_classes: int = 124,
        overrides: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
        backbone_weights: Path | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        auxiliary_weight: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        seed: int = 0,
        compile: str | None = AUTOMATIC,
        tf32: bool = False,
    ) -> None:
        super().__init__()
        if compile is not None and compile != AUTOMATIC:
            check_backend(compile)
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights must have one entry for each of the {num_classes} classes, got "
                f"{len(class_weights)}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = create_model(name, num_classes, **(overrides or {}))
        if backbone_weights is not None:
            load_backbone(self.model, backbone_weights)
        self._loaded: LoadReport | None = None
        if checkpoint is not None:
            self._loaded = load_pretrained(self.model, checkpoint)
        self.loss = ClipLoss(
            auxiliary_weight,
            class_weights=None if class_weights is None else torch.tensor(class_weights),
            label_smoothing=label_smoothing,
        )
        self.optimizer_settings = optimizer
        self.seed = seed
        self._execution = compile
        self._step: TrainingStep | None = None
        self._allows_tf32 = tf32
        self._tf32 = Tf32()
        self.classes: ClassTable = numbered_classes(num_classes)
        self._batches_started = 0
        self._evaluator: Evaluator | None = None
        self.report: EvaluationReport | None = None
        """Figures of the latest evaluation."""

    def setup(self, stage: str) -> None:
        """Takes classes and offsets from the data and checks that the model fits them.

        Raises:
            CheckpointError: If a model is to be evaluated that has some fresh weights.
            TypeError: If the trainer was not given a :class:`VideoDataModule`.
            ValueError: If the model has another number of classes or references than the data, or
                its steps cannot be run as `compile` says.
        """
        if stage != "fit" and self._loaded is not None and not self._loaded.complete:
            raise CheckpointError(
                "the checkpoint is not of this model, so some of its weights are fresh; evaluate "
                "it with the classes and the model it was trained with (--data.num_classes, "
                f"--model.name)\n{self._loaded}"
            )
        if stage == "fit":
            self._step = chosen_step(self.model, self.loss, self._execution, self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, VideoDataModule):
            raise TypeError(
                f"the trainer needs a VideoDataModule as datamodule, got {type(data).__name__}"
            )
        if stage == "fit":
            self.model.check_size(*data.train_transform.crop, "data.train_transform.crop")
        if data.num_classes != self.model.num_classes:
            raise ValueError(
                f"the model has {self.model.num_classes} classes, the data {data.num_classes}; "
                "set model.num_classes and data.num_classes alike"
            )
        self.classes = data.class_table()
        known = self.model.trained_on
        self.model.trained_on = TrainedOn(
            class_names=self.classes.names,
            class_colours=self.classes.colours,
            reference_offsets=tuple(data.offsets) if self.model.num_references else (),
            frame_scale=data.evaluation_transform.scale or (),
            precision=network_precision(self.trainer.precision),
        )
        if stage != "fit":
            warn_of_other_settings(known, self.model.trained_on)
        self._evaluator = Evaluator(self.model, data.offsets, self.classes.names)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and its schedule, which follows the optimizer's steps.

        Raises:
            ValueError: If the trainer has no ``max_steps``, without which there is no schedule.
        """
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps must be at least 1, got {self.trainer.max_steps}; the learning "
                "rate falls to zero over that many steps"
            )
        optimizer, scheduler = build_optimizer(
            self.model, self.optimizer_settings, self.trainer.max_steps
        )
        if self._step is not None and self._step.replays:
            optimizer.capture = CudaCapture()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Seeds dropout for this batch."""
        generator = item_generator(self.seed, self._batches_started, self.global_rank)
        torch.manual_seed(generator.initial_seed())
        self._batches_started += 1

    def on_train_start(self) -> None:
        """Lets training steps round as the setting ``tf32`` says."""
        self._tf32.allow(self._allows_tf32)

    def teardown(self, stage: str) -> None:
        """Lets products round as before the run."""
        self._tf32.restore()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of clips.

        Args:
            batch: ``clip`` (B, T, 3, H, W) and ``labels`` (B, T, H, W).
            batch_idx: Number of the batch.

        Returns:
            A scalar.
        """
        if self._step is None:
            logits = self.model(batch["clip"])
            loss = self.loss(logits, batch["labels"])
        else:
            accumulated = self.trainer.accumulate_grad_batches
            logits, loss = self._step(
                batch["clip"], batch["labels"], batch_idx % accumulated != 0, 1 / accumulated
            )
        self.log("train/loss", loss, prog_bar=True)
        log_every_n_steps = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if log_every_n_steps and (self.trainer.global_step + 1) % log_every_n_steps == 0:
            self._log_parts(logits, batch["labels"])
        return loss

    def optimizer_zero_grad(self, *arguments: Any, **named: Any) -> None:
        """Clears the gradients, unless :meth:`training_step` has just written the batch's own."""
        if self._step is None:
            super().optimizer_zero_grad(*arguments, **named)

    def backward(self, loss: Tensor, *arguments: Any, **named: Any) -> None:
        """Computes the gradients, unless :meth:`training_step` has done so."""
        if self._step is None:
            super().backward(loss, *arguments, **named)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Averages gradients over the processes where the trainer's strategy has not."""
        if self._step is not None and self.trainer.world_size > 1:
            self._step.average_gradients()

    @torch.no_grad()
    def _log_parts(self, logits: ClipLogits, labels: Tensor) -> None:
        nothing = logits.target[:, :0]
        self.log("train/loss_per_frame", self.loss(logits._replace(target=nothing), labels))
        for number in range(logits.target.shape[1]):
            # Alone and as if per frame: the loss then is this prediction's plain cross-entropy.
            head = ClipLogits(logits.target[:, number : number + 1], nothing)
            self.log(f"train/loss_target_{number}", self.loss(head, labels[:, -1:]))

    def predict(self, clip: Tensor) -> Tensor:
        """Labels (B, H, W) of the last frames of clips (B, T, 3, H, W), in evaluation mode."""
        height, width = clip.shape[-2:]
        return upsample_argmax(self.model(clip), (height, width))

    def on_validation_start(self) -> None:
        """Starts a new evaluation; the consistency over time is left to the test."""
        self._start_evaluation(complete=False)

    def on_validation_end(self) -> None:
        """Lets training steps round as the setting ``tf32`` says again."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._tf32.allow(self._allows_tf32)

    def on_test_start(self) -> None:
        """Starts a new evaluation."""
        self._start_evaluation(complete=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Evaluates one frame."""
        self.test_step(batch, batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Evaluates one frame and returns its ``labels`` (H, W); nothing for an idle process."""
        return {} if IDLE in batch else {"labels": self.evaluator.update(batch)}

    def on_validation_epoch_end(self) -> None:
        """Logs the validation figures; all processes have the same."""
        self.report = self.evaluator.report()
        self.log("val/mIoU", self.report.mean_iou, prog_bar=True)
        self.log("val/weighted_IoU", self.report.weighted_iou)
        self.log("val/pixel_accuracy", self.report.pixel_accuracy)

    def on_test_epoch_end(self) -> None:
        """Gathers the figures of all processes."""
        self.report = self.evaluator.report()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the model was built with, in plain types."""
        checkpoint[RUN_KEY] = {
            **self._built_with(),
            **asdict(self.model.trained_on),
            "batches_started": self._batches_started,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that a run's checkpoint is of this model.

        Raises:
            ValueError: If it is of another model or no run's checkpoint at all.
        """
        saved = checkpoint.get(RUN_KEY)
        if saved is None:
            raise ValueError(
                "this checkpoint is not from a run of this package; start from its weights with "
                "--checkpoint instead"
            )
        is_training = self.trainer.state.fn == TrainerFn.FITTING
        for key, value in self._built_with().items():
            # The seed decides how a training goes on, and nothing in an evaluation.
            if saved[key] != value and (is_training or key != "seed"):
                raise ValueError(
                    f"the checkpoint is of a run with {key}={saved[key]!r}, this one has "
                    f"{value!r}; use the settings the run was started with"
                )
        self._batches_started = saved["batches_started"]
        if not is_training:
            warn_of_other_settings(TrainedOn.read(saved), self.model.trained_on)

    @property
    def batches_started(self) -> int:
        """Batches of the whole run, before and after it was resumed, that have begun."""
        return self._batches_started

    @property
    def evaluator(self) -> Evaluator:
        """Collects the figures of the evaluation in progress."""
        if self._evaluator is None:
            raise RuntimeError("the module is not set up: run it with a trainer")
        return self._evaluator

    def _built_with(self) -> dict[str, Any]:
        assert self.model.config is not None
        return {**asdict(self.model.config), "seed": self.seed}

    def _start_evaluation(self, complete: bool) -> None:
        self._tf32.allow(False)
        if self.trainer.world_size > 1:
            # Plain BatchNorm keeps statistics per process; every process must judge one model.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self.evaluator.reset(self.device, complete)


def segmentation_module(trainer: pl.Trainer) -> SegmentationModule:
    """The module a trainer is running.

    Raises:
        TypeError: If it is of another kind.
    """
    module = trainer.lightning_module
    if not isinstance(module, SegmentationModule):
        raise TypeError(f"the trainer must run a SegmentationModule, got {type(module).__name__}")
    return module
