"""The training loss of all models: cross-entropy of the per-frame and of the target logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vss_kernels import upsample_cross_entropy
from vss_models.heads.segformer import ClipLogits


class ClipLoss(nn.Module):
    """Cross-entropy at the size of the labels, for `ClipLogits`.

    The target predictions are compared with the last frame's labels with weight 1, the per-frame
    logits with their own frames' labels with weight `auxiliary_weight`. A per-frame model (M = 0)
    has no target predictions; there the per-frame term has weight 1.

    Args:
        auxiliary_weight: Weight of the per-frame term beside target predictions.
        ignore_index: Label that counts nowhere.
        reduction: "mean_all" divides by all pixels, ignored ones included, as the published models
            were trained; "mean" divides by the pixels that count; "sum" adds up.
        class_weights: (K,) weights of the classes, or None.
        label_smoothing: Fraction of the target probability spread over all classes.

    Raises:
        ValueError: If the reduction does not give a scalar, or a weight or the smoothing is out of
            range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        auxiliary_weight: float = 0.5,
        ignore_index: int = 255,
        reduction: str = "mean_all",
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(auxiliary_weight) and auxiliary_weight >= 0):
            raise ValueError(
                f"auxiliary_weight must be a number of at least 0, got {auxiliary_weight}"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")
        if class_weights is not None:
            weights_are_valid = torch.isfinite(class_weights).all() and (class_weights >= 0).all()
            if not (weights_are_valid and class_weights.any()):
                raise ValueError(
                    "class_weights must be numbers of at least 0, not all of them 0, got "
                    f"{class_weights.tolist()}"
                )
        if reduction not in ("mean_all", "mean", "sum"):
            raise ValueError(f"reduction must be 'mean_all', 'mean' or 'sum', got {reduction!r}")
        self.auxiliary_weight = auxiliary_weight
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: ClipLogits, labels: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: A model's answer in training mode.
            labels: (B, T, H, W) integer classes of every frame.

        Returns:
            A scalar.

        Raises:
            ValueError: If the labels are not of the logits' clips and frames.
        """
        if labels.dim() != 4 or labels.shape[:2] != logits.per_frame.shape[:2]:
            raise ValueError(
                f"labels must be (B, T, H, W) with B, T = {tuple(logits.per_frame.shape[:2])}, got "
                f"{tuple(labels.shape)}"
            )
        per_frame = self._cross_entropy(logits.per_frame, labels)
        num_targets = logits.target.shape[1]
        if num_targets == 0:
            return per_frame
        target = self._cross_entropy(logits.target, labels[:, -1:].expand(-1, num_targets, -1, -1))
        return self.auxiliary_weight * per_frame + target

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return upsample_cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(0, 1),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
        )


__all__ = ["ClipLoss"]
