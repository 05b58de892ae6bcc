"""patch as a whole: the report, strictness, and what stays of a patched model."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import vss_kernels
from tests.support.foreign_modules import (
    CHANNELS,
    LinearHead,
    make_levels,
    make_upsampling_head,
)
from vss_kernels.patch.kinds import kinds_of


def test_patching_twice_changes_nothing_more_and_copies_and_pickles_stay_patched():
    head = LinearHead(CHANNELS, 10, 7).eval()
    signature = inspect.signature(head.forward)
    first = vss_kernels.patch(head, verbose=False)
    again = vss_kernels.patch(head, verbose=False)
    assert first == again
    assert isinstance(head, LinearHead)
    assert inspect.signature(head.forward) == signature
    assert type(head).__name__ == "LinearHead"
    levels = make_levels(torch.float32)
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    for other in (
        copy.deepcopy(head),
        pickle.loads(pickle.dumps(head)),
        torch.load(file, weights_only=False),
    ):
        assert kinds_of(other) == kinds_of(head)
        assert torch.equal(other(levels), head(levels))
        assert vss_kernels.unpatch(other) == 1
        assert type(other) is LinearHead
    assert kinds_of(head)


def test_strict_needs_every_named_operator_and_leaves_the_model_as_it_was(capsys):
    head = make_upsampling_head()
    with pytest.raises(vss_kernels.PatchError, match="found nothing for focal_attention"):
        vss_kernels.patch(head, ["upsample_cross_entropy", "focal_attention"])
    assert not kinds_of(head)
    with pytest.raises(ValueError, match="unknown operator 'softmax'; choose from aggregate_aff"):
        vss_kernels.patch(head, ["softmax"])
    report = vss_kernels.patch(nn.ModuleDict({"head": head}), ["upsample_cross_entropy"])
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert "replaced 1 of 1 parts\n  replaced      head: upsampling at the end" in printed
