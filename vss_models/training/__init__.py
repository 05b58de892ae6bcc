"""Training and evaluation on Lightning; needs the `train` extra."""

from vss_models.training.callbacks import SampleOverlays
from vss_models.training.data import VideoDataModule
from vss_models.training.evaluate import Evaluator, evaluate
from vss_models.training.module import SegmentationModule
from vss_models.training.optim import OptimizerSettings, build_optimizer
from vss_models.training.report import EvaluationReport
from vss_models.training.run import fit
from vss_models.training.run_checkpoints import BestCheckpoint, RunCheckpoints
from vss_models.training.writer import ReportWriter, write_submission

__all__ = [
    "BestCheckpoint",
    "EvaluationReport",
    "Evaluator",
    "OptimizerSettings",
    "ReportWriter",
    "RunCheckpoints",
    "SampleOverlays",
    "SegmentationModule",
    "VideoDataModule",
    "build_optimizer",
    "evaluate",
    "fit",
    "write_submission",
]
