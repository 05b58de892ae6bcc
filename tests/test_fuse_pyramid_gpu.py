"""fuse_pyramid's gradient as a GPU runs it (``csrc/fuse_pyramid/gpu_backward.h``), emulated.

Other sizes and the forward pass run in ``test_fuse_pyramid.py`` under the race check.
"""

from __future__ import annotations

import pytest
import torch

import vss_kernels
from tests.support.emulated_gpu import load_emulated
from tests.support.precision import SLACK, error
from vss_kernels import fuse_pyramid
from vss_kernels._runtime import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# (batch, channels, size of the incoming gradient, sizes of the levels)
CASES = [
    (
        2,
        9,
        (24, 40),
        ((12, 20), (6, 10), (3, 5)),
    ),  # the published ratios; planes for several blocks
    (1, 3, (17, 35), ((9, 18), (5, 7), (17, 35))),  # no whole packs, no whole ratios, one as large
    (1, 2, (150, 68), ((60, 34), (1, 1), (150, 1))),  # bands of rows, empty slots, single cells
    (1, 1, (3, 256), ((2, 255), (3, 128), (1, 32))),  # as many packs as threads
    (1, 2, (3, 260), ((2, 255), (3, 128))),  # more: the general kernel
    (2, 2, (16, 12), ((15, 11),) * 7),  # three launches
    (1, 40, (1, 1), ((1, 1), (1, 1))),  # single pixels
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return load_emulated("fuse_pyramid", tmp_path_factory.mktemp("emulated"))


def gradients(operators, grad, sizes, align_corners=False):
    flat = [side for size in sizes for side in size]
    return operators.fuse_pyramid_backward(grad, flat, align_corners)


def eager_gradients(grad, sizes, align_corners=False):
    levels = [torch.zeros(*grad.shape[:2], *size, dtype=grad.dtype) for size in sizes]
    leaves = [level.requires_grad_() for level in levels]
    with vss_kernels.backend("eager", "fuse_pyramid"):
        fused = fuse_pyramid([torch.zeros_like(grad), *leaves], align_corners=align_corners)
    return torch.autograd.grad(fused, leaves, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_as_accurate_as_eager(case, align_corners, dtype, emulated):
    batch, channels, incoming, sizes = case
    grad = torch.randn(batch, channels, *incoming).to(dtype)
    results = gradients(emulated, grad, sizes, align_corners)
    eager = eager_gradients(grad, sizes, align_corners)
    exact = eager_gradients(grad.double(), sizes, align_corners)
    for have, plain, want in zip(results, eager, exact, strict=True):
        assert have.dtype == dtype
        assert error(have, want) <= 2 * error(plain, want) + SLACK[dtype]


def test_bits_depend_neither_on_the_run_nor_on_where_a_plane_lies(emulated):
    grad = torch.randn(1, 70, 40, 24)
    sizes = ((20, 12), (10, 6), (5, 3))
    together = gradients(emulated, grad, sizes)
    again = gradients(emulated, grad, sizes)
    alone = gradients(emulated, grad[:, 69:], sizes)  # one block, so that there are bands
    for one, other, single in zip(together, again, alone, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[:, 69:], single)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_reaches_the_cells_that_read_it_and_no_other(value, emulated):
    grad = torch.randn(1, 2, 16, 72)
    grad[0, 1, 7, 33] = value
    sizes = ((8, 36), (4, 18))
    for have, want in zip(
        gradients(emulated, grad, sizes), eager_gradients(grad, sizes), strict=True
    ):
        assert 4 <= (~want.isfinite()).sum() < want[0, 0].numel()
        assert torch.equal(have.isfinite(), want.isfinite())


def test_an_empty_batch_and_no_levels(emulated):
    (result,) = gradients(emulated, torch.zeros(0, 4, 8, 8), ((4, 4),))
    assert result.shape == (0, 4, 4, 4)
    assert gradients(emulated, torch.zeros(1, 4, 8, 8), ()) == []
