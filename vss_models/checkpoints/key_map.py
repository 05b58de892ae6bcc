"""The names of the weights: one table from ours to each published layout.

A pattern stands for many names: `{stage}` is an index, `{stage+1}` the same counted from one,
`{3*layer+1}` a linear form of it, and a final `*` is the parameter's own name. The first pattern
that fits counts. Names are looked up from ours to theirs; the other direction is the inverse over
all names of a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

Names = tuple[str, ...]
"""Published names of one of our tensors: one, or several that are concatenated along rows."""

_BLOCK = "stages.{stage}.blocks.{block}"
_RELEASED_BLOCK = "block{stage+1}.{block}"
_HUGGING_FACE_BLOCK = "block.{stage}.{block}"
_SELF = _HUGGING_FACE_BLOCK + ".attention.self"

# Ours | released, segmentation_models_pytorch and ImageNet files | Hugging Face.
MIT_TABLE: tuple[tuple[str, str, str | Names], ...] = (
    (
        "stages.{stage}.embedding.projection.*",
        "patch_embed{stage+1}.proj.*",
        "patch_embeddings.{stage}.proj.*",
    ),
    (
        "stages.{stage}.embedding.norm.*",
        "patch_embed{stage+1}.norm.*",
        "patch_embeddings.{stage}.layer_norm.*",
    ),
    (
        f"{_BLOCK}.attention_norm.*",
        f"{_RELEASED_BLOCK}.norm1.*",
        f"{_HUGGING_FACE_BLOCK}.layer_norm_1.*",
    ),
    (f"{_BLOCK}.attention.query.*", f"{_RELEASED_BLOCK}.attn.q.*", f"{_SELF}.query.*"),
    (
        f"{_BLOCK}.attention.key_value.*",
        f"{_RELEASED_BLOCK}.attn.kv.*",
        (f"{_SELF}.key.*", f"{_SELF}.value.*"),
    ),
    (f"{_BLOCK}.attention.reduction.*", f"{_RELEASED_BLOCK}.attn.sr.*", f"{_SELF}.sr.*"),
    (
        f"{_BLOCK}.attention.reduction_norm.*",
        f"{_RELEASED_BLOCK}.attn.norm.*",
        f"{_SELF}.layer_norm.*",
    ),
    (
        f"{_BLOCK}.attention.projection.*",
        f"{_RELEASED_BLOCK}.attn.proj.*",
        f"{_HUGGING_FACE_BLOCK}.attention.output.dense.*",
    ),
    (
        f"{_BLOCK}.mlp_norm.*",
        f"{_RELEASED_BLOCK}.norm2.*",
        f"{_HUGGING_FACE_BLOCK}.layer_norm_2.*",
    ),
    (
        f"{_BLOCK}.mlp.expand.*",
        f"{_RELEASED_BLOCK}.mlp.fc1.*",
        f"{_HUGGING_FACE_BLOCK}.mlp.dense1.*",
    ),
    (
        f"{_BLOCK}.mlp.depthwise.*",
        f"{_RELEASED_BLOCK}.mlp.dwconv.dwconv.*",
        f"{_HUGGING_FACE_BLOCK}.mlp.dwconv.dwconv.*",
    ),
    (
        f"{_BLOCK}.mlp.contract.*",
        f"{_RELEASED_BLOCK}.mlp.fc2.*",
        f"{_HUGGING_FACE_BLOCK}.mlp.dense2.*",
    ),
    ("stages.{stage}.norm.*", "norm{stage+1}.*", "layer_norm.{stage}.*"),
)

_REFINE = "relation.aggregation"
_RELEASED_REFINE = "hypercorre_module.hpn.encoder_layer"
_FOCAL = "blocks.{block}"
_RELEASED_FOCAL = "decoder_focal.blocks.{block}"
_RELEASED_BIAS = _RELEASED_FOCAL + ".attn.relative_position_bias_table"

# Ours | released. The heads differ in which of these they have.
HEAD_TABLE: tuple[tuple[str, str], ...] = (
    ("fusion.level_projections.{level}.*", "linear_c{level+1}.proj.*"),
    ("fusion.mix.*", "linear_fuse.conv.*"),
    ("fusion.norm.*", "linear_fuse.bn.*"),
    ("classifier.*", "linear_pred.*"),
    ("reference_reductions.{scale}.*", "sr{scale+2}.*"),
    ("value.*", "sr1_feat.*"),
    ("decoders.{reference}.*", "deco{reference+1}.smalldecoder.1.*"),
    ("relation.target_projections.{scale}.*", "hypercorre_module.q{scale+1}.*"),
    ("relation.reference_projections.{scale}.*", "hypercorre_module.k{scale+1}.*"),
    *(
        (f"{_REFINE}.{ours}.{{layer}}.{part}.*", f"{_RELEASED_REFINE}{theirs}.{place}.*")
        for ours, theirs in (
            ("coarse", "4"),
            ("middle", "3"),
            ("fine", "2"),
            ("coarse_to_middle", "4to3"),
            ("middle_to_fine", "3to2"),
        )
        for part, place in (("conv", "{3*layer}.conv2"), ("norm", "{3*layer+1}"))
    ),
    ("target_classifier.*", "linear_pred2.*"),
    *(
        (f"{_FOCAL}.{ours}.*", f"{_RELEASED_FOCAL}.{theirs}.*")
        for ours, theirs in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("attention.qkv", "attn.qkv"),
            ("attention.proj", "attn.proj"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
            ("target_pool", "pool_layers.0"),
            ("reference_pools.{reference}", "pool_layers_clips.{reference}"),
        )
    ),
    (f"{_FOCAL}.attention.window_bias", _RELEASED_BIAS),
    (f"{_FOCAL}.attention.around_bias", f"{_RELEASED_BIAS}_to_neighbors"),
    (f"{_FOCAL}.attention.pooled_bias.0", f"{_RELEASED_BIAS}_to_windows.0"),
    (
        f"{_FOCAL}.attention.pooled_bias.{{level}}",
        f"{_RELEASED_BIAS}_to_windows_clips.{{level-1}}",
    ),
)

NO_CONTENT = re.compile(r"(^|\.)(conv_seg\.|relative_position_index|valid_ind)")
"""Released keys that carry nothing: an unused classifier and index tables."""

IMAGENET_CLASSIFIER = re.compile(r"^(head|classifier)\.")
"""The classification layer of an ImageNet file."""

OWN_LAYOUT = "this package's"
"""The one of `backbone_layouts` that has this package's own names, whatever the encoder."""

_FIELD = re.compile(r"\{(?:(\d+)\*)?([a-z]+)([+-]\d+)?\}")


def released_names(model_keys: Sequence[str]) -> dict[str, Names]:
    """Maps each key of a model's state dict to its released name.

    Keys the table does not know (a timm encoder's, for one) keep their names.
    """
    backbone = [(ours, released) for ours, released, _ in MIT_TABLE]
    return {
        **_rename(model_keys, backbone, "backbone.", "backbone."),
        **_rename(model_keys, HEAD_TABLE, "head.", "decode_head."),
    }


def backbone_layouts(backbone_keys: Sequence[str]) -> dict[str, dict[str, Names]]:
    """Maps an encoder's keys to their names in every layout: the package's own and published ones.

    Returns:
        Layout -> (our key -> published names). The layouts differ in their prefix as well.
    """
    released = [(ours, theirs) for ours, theirs, _ in MIT_TABLE]
    hugging_face = [(ours, theirs) for ours, _, theirs in MIT_TABLE]
    return {
        "ImageNet": _rename(backbone_keys, released, "", ""),
        "released": _rename(backbone_keys, released, "", "backbone."),
        "segmentation_models_pytorch": _rename(backbone_keys, released, "", "encoder."),
        "Hugging Face": _rename(backbone_keys, hugging_face, "", "segformer.encoder."),
        "Hugging Face encoder": _rename(backbone_keys, hugging_face, "", "encoder."),
        OWN_LAYOUT: _rename(backbone_keys, (), "", "backbone."),
    }


def _rename(
    keys: Sequence[str],
    table: Sequence[tuple[str, str | Names]],
    our_prefix: str,
    their_prefix: str,
) -> dict[str, Names]:
    names = {}
    for key in keys:
        if key.startswith(our_prefix):
            found = _look_up(key[len(our_prefix) :], table) or (key[len(our_prefix) :],)
            names[key] = tuple(their_prefix + name for name in found)
    return names


def _look_up(key: str, table: Sequence[tuple[str, str | Names]]) -> Names | None:
    for ours, theirs in table:
        match = _compile(ours).fullmatch(key)
        if match:
            patterns = (theirs,) if isinstance(theirs, str) else theirs
            return tuple(_fill(pattern, match.groupdict()) for pattern in patterns)
    return None


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Turns one of our patterns (plain indices only) into a regular expression."""
    expression = re.sub(r"\\\{([a-z]+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern))
    return re.compile(re.sub(r"\\\*$", r"(?P<parameter>[a-z_]+)", expression))


def _fill(pattern: str, fields: Mapping[str, str]) -> str:
    def number(match: re.Match[str]) -> str:
        scale, name, offset = match.groups()
        return str(int(scale or 1) * int(fields[name]) + int(offset or 0))

    filled = _FIELD.sub(number, pattern)
    return filled[:-1] + fields["parameter"] if filled.endswith("*") else filled


__all__ = [
    "IMAGENET_CLASSIFIER",
    "NO_CONTENT",
    "OWN_LAYOUT",
    "Names",
    "backbone_layouts",
    "released_names",
]
