"""Data: videos in the VSPW layout, clips drawn from them, augmentation and loading.

Training batches are ``{"clip": float32 (B,T,3,H,W), "labels": uint8 (B,T,H,W)}``, the target frame
last and ignored pixels 255.
"""

from vss_models.data.classes import (
    IGNORED,
    VSPW_CLASSES,
    ClassTable,
    generated_colours,
    label_table,
    numbered_classes,
    read_classes,
    vspw_classes,
)
from vss_models.data.clips import (
    PUBLISHED_OFFSETS,
    check_offsets,
    draw_training_clip,
    evaluation_references,
    shortest_video,
)
from vss_models.data.datasets import ClipTestDataset, ClipTrainDataset, choose_classes
from vss_models.data.images import read_image, read_mask
from vss_models.data.loaders import (
    ClipSampler,
    VideoShardSampler,
    evaluation_loader,
    item_generator,
    train_loader,
)
from vss_models.data.photometric import PhotometricDistortion
from vss_models.data.synthetic import (
    SYNTHETIC_CLASSES,
    make_synthetic_dataset,
    read_disturbances,
)
from vss_models.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvaluationTransform,
    TrainTransform,
    denormalise,
    normalise,
)
from vss_models.data.vspw import VideoRecord, check_root, find_videos, list_frames

__all__ = [
    "IGNORED",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PUBLISHED_OFFSETS",
    "SYNTHETIC_CLASSES",
    "VSPW_CLASSES",
    "ClassTable",
    "ClipSampler",
    "ClipTestDataset",
    "ClipTrainDataset",
    "EvaluationTransform",
    "PhotometricDistortion",
    "TrainTransform",
    "VideoRecord",
    "VideoShardSampler",
    "check_offsets",
    "check_root",
    "choose_classes",
    "denormalise",
    "draw_training_clip",
    "evaluation_loader",
    "evaluation_references",
    "find_videos",
    "generated_colours",
    "item_generator",
    "label_table",
    "list_frames",
    "make_synthetic_dataset",
    "normalise",
    "numbered_classes",
    "read_classes",
    "read_disturbances",
    "read_image",
    "read_mask",
    "shortest_video",
    "train_loader",
    "vspw_classes",
]
