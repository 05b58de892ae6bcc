"""MRCFA's head: traced once for all sizes, and never waiting for the GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import vss_kernels
from tests.support.aggregation_cases import KEEP, PUBLISHED
from vss_kernels._runtime import triton_support
from vss_kernels.nn import RelationAffinity
from vss_models.heads.mrcfa import MRCFAHead

DIMS = (8, 16, 24)


def make_maps(height: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Features of two clips with three references, for a 1/32 grid of the given size."""
    target = [
        torch.randn(2, dim, height * scale, width * scale, requires_grad=True)
        for dim, scale in zip(DIMS, (4, 2, 1), strict=True)
    ]
    return target, [torch.randn(2, 3, dim, height, width, requires_grad=True) for dim in DIMS]


@pytest.mark.parametrize("variant", ["b2", pytest.param("b1", marks=pytest.mark.slow)])
def test_all_sizes_share_one_compilation(variant):
    torch.compiler.reset()  # sizes that other tests compiled would count as seen before
    module = RelationAffinity(DIMS, PUBLISHED[variant], KEEP[variant])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for size in ((3, 3), (3, 5), (4, 2)):  # as 480x480 and 480x864: square, wide; and tall
        target, references = make_maps(*size)
        for maps in (*target, *references):
            torch._dynamo.mark_dynamic(maps, (maps.dim() - 2, maps.dim() - 1))
        affinity, index = compiled(target, references)
        expected_affinity, expected_index = module(target, references)
        assert torch.equal(index, expected_index)
        torch.testing.assert_close(affinity, expected_affinity, rtol=1e-4, atol=1e-5)
        affinity.sum().backward()
        assert all(maps.grad.isfinite().all() for maps in (*target, *references))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_no_value_is_read_from_features_to_logits(backend, monkeypatch):
    """Fake CUDA tensors hold no values: reading one, as a host sync would, is an error."""
    monkeypatch.setattr(triton_support, "_has_device", True)
    channels = (8, 16, 40, 64)
    operators = ("select_tokens", "masked_affinity", "attend_selected")
    with FakeTensorMode(), torch.device("cuda"), vss_kernels.backend(backend, *operators):
        head = MRCFAHead(channels, 7, PUBLISHED["b1"], KEEP["b1"], embed_dim=32)
        features = [
            torch.randn(8, dim, 96 // stride, 128 // stride)
            for dim, stride in zip(channels, (4, 8, 16, 32), strict=True)
        ]
        logits = head(features, 2)
        assert logits.target.shape == (2, 4, 7, 24, 32)
        with pytest.raises(DataDependentOutputException):
            bool(logits.target.sum() > 0)  # so that this test could fail
