"""What a backward pass could not do on a GPU is refused in the forward pass, by the same message.

On the emulated GPU, whose blocks have 48 KiB of shared memory. Its hundreds of threads keep every
core busy for a minute, which tests beside it do not stand: run with -m slow.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.emulated_gpu import load_emulated
from vss_kernels._runtime import native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.problem() is not None, reason=str(native.problem())),
]

MESSAGE = r"_backward: a block needs \d+ bytes of shared memory, the GPU has 49152; use the eager"


@pytest.fixture(scope="module")
def focal_pool(tmp_path_factory):
    return load_emulated("focal_pool", tmp_path_factory.mktemp("emulated"), "VSS_LIMIT_SCRATCH")


@pytest.mark.parametrize("cells", [8, 60, 90, 100, 110, 130, 200])
def test_focal_pool(focal_pool, cells):
    """Each of two pixels is read by about all the cells of a side."""
    x, weight = torch.randn(1, 2, 2, 1), torch.randn(1)
    try:
        out = focal_pool.focal_pool(x, weight, torch.zeros(()), [cells, cells])
    except RuntimeError as error:
        assert cells >= 100
        with pytest.raises(RuntimeError, match="focal_pool" + MESSAGE):
            raise error
    else:
        assert cells <= 110
        grads = focal_pool.focal_pool_backward(out, x, weight, [True, True, True])
        assert grads[0].shape == x.shape
