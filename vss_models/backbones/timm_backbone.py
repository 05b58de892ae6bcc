"""Any timm model with feature levels at strides 4, 8, 16 and 32 as an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)

# fmt: off
OPTIONS = frozenset((
    "act_layer", "attn_drop_rate", "depths", "dims", "drop_path_rate", "drop_rate", "embed_dim",
    "embed_dims", "img_size", "kernel_sizes", "linear", "ls_init_value", "mlp_ratio", "mlp_ratios",
    "norm_eps", "norm_layer", "num_heads", "out_indices", "patch_size", "pretrained",
    "proj_drop_rate", "qkv_bias", "sr_ratios", "strict_img_size", "window_ratio", "window_size",
))
# fmt: on
"""What `backbone_options` may name: the architecture, and whether to download its weights.

A model file brings its options along. timm has others that read files or addresses, such as
`checkpoint_path` and `pretrained_cfg`, and what they read may run code.
"""


class TimmBackbone(nn.Module):
    """Wraps a timm model so that it returns four NCHW maps at strides 4, 8, 16 and 32.

    Args:
        name: Model name in timm, such as "pvt_v2_b1" or "convnext_tiny".
        options: More keyword arguments for `timm.create_model`, of those in `OPTIONS`: such as
            `{"pretrained": True}`, or `{"img_size": (480, 864)}` for models of one fixed size.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm does not know the name, its last four levels have other strides, or an
            option is not among `OPTIONS`.
    """

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        others = sorted(str(name) for name in options or {} if name not in OPTIONS)
        if others:
            raise ValueError(
                f"backbone_options must not name {', '.join(others)}; they are the architecture's: "
                f"{', '.join(sorted(OPTIONS))}"
            )
        try:
            import timm
        except ModuleNotFoundError as error:
            raise ImportError(
                f"backbone={name!r} is a timm model, and timm is not installed; "
                "run `pip install vss-kernels[models]`"
            ) from error
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "none"
            raise ValueError(f"backbone={name!r} is not a timm model; similar names: {close}")
        self.name = name
        encoder: Any = timm.create_model(name, features_only=True, **dict(options or {}))
        strides = tuple(encoder.feature_info.reduction())
        if strides[-4:] != STRIDES:
            raise ValueError(
                f"backbone={name!r} has feature levels at strides {strides}; the heads need four "
                f"levels at {STRIDES}. Choose a hierarchical model (pvt_v2, swin, convnext, resnet)"
            )
        self.encoder: nn.Module = encoder
        self.channels = tuple(encoder.feature_info.channels()[-4:])
        self.channels_last = str(getattr(encoder, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encodes images (N, 3, H, W) into four maps (N, C_i, H_i, W_i) at strides 4 to 32."""
        features = list(self.encoder(images))[-4:]
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features


__all__ = ["TimmBackbone"]
