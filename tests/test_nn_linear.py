"""The linear layers of tokens: what they compute, and by which of a CPU's libraries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vss_kernels
from tests.support.precision import SLACK, error
from vss_kernels.nn import FusePyramid, TokenLinear, token_linear

HAS_ONEDNN = torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="PyTorch was built without oneDNN")


class _Names(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _convolves(function) -> bool:
    with _Names() as seen:
        function()
    return any("conv" in name for name in seen.names)


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 32), (1, 3, 4, 1), (1, 1), (0, 8), (2, 0, 16)])
@pytest.mark.parametrize("outgoing", [1, 40])
@pytest.mark.parametrize("has_bias", [True, False])
def test_is_as_accurate_as_linear(shape, outgoing, has_bias, two_threads):
    x = torch.randn(shape)
    weight = torch.randn(outgoing, shape[-1])
    bias = torch.randn(outgoing) if has_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        out = token_linear(x, weight, bias)
    assert out.shape == exact.shape
    assert out.is_contiguous()
    if out.numel():
        assert (
            error(out, exact) <= 2 * error(F.linear(x, weight, bias), exact) + SLACK[torch.float32]
        )


def test_strides_do_not_matter(two_threads):
    x = torch.randn(2, 16, 6, 5)
    layer = TokenLinear(16, 8)
    with torch.no_grad():
        out = layer(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(out, F.linear(x.permute(0, 2, 3, 1), layer.weight, layer.bias))
    assert out.is_contiguous()


@needs_onednn
def test_inference_on_a_cpu_convolves(two_threads):
    layer, x = TokenLinear(16, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        assert _convolves(lambda: layer(x))
    with torch.inference_mode():
        assert _convolves(lambda: layer(x))


needs_bfloat16 = pytest.mark.skipif(
    not (HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="oneDNN does not multiply in bfloat16 on this CPU",
)


@needs_bfloat16
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 32), (1, 3, 4, 1), (0, 8)])
def test_inference_in_bfloat16_convolves_and_is_as_accurate(
    shape, is_autocast, threads, two_threads
):
    torch.set_num_threads(threads)
    layer, x = TokenLinear(shape[-1], 40), torch.randn(shape)
    if not is_autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        out = layer(x)
        plain = F.linear(x, layer.weight, layer.bias)
        assert _convolves(lambda: layer(x)) == (x.numel() > 0)
    assert out.dtype == plain.dtype == torch.bfloat16
    assert out.shape == exact.shape
    assert out.is_contiguous()
    if out.numel():
        assert error(out, exact) <= 2 * error(plain, exact) + SLACK[torch.bfloat16]


def test_all_else_is_linear(two_threads):
    layer, x = TokenLinear(16, 8), torch.randn(2, 5, 16)
    assert not _convolves(lambda: layer(x))  # gradients are wanted
    with torch.no_grad():
        assert not _convolves(lambda: TokenLinear(16, 8).double()(x.double()))
        with torch.autocast("cpu", torch.float16):
            assert not _convolves(lambda: layer(x))
        with vss_kernels.backend("eager"):
            assert not _convolves(lambda: layer(x))
        with torch.backends.mkldnn.flags(enabled=False):
            assert not _convolves(lambda: layer(x))
        torch.set_num_threads(1)
        assert not _convolves(lambda: layer(x))


def test_gradients_are_those_of_linear(two_threads):
    layer, plain = TokenLinear(16, 8), torch.nn.Linear(16, 8)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 16)
    layer(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.bias.grad, plain.bias.grad)


def test_a_compiler_sees_a_matrix_product(two_threads):
    layer, x = TokenLinear(16, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        assert "conv" not in str(program.graph)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("order", ["channels last", "contiguous"])
def test_the_fusion_of_levels_convolves_where_channels_are_adjacent(order, two_threads):
    fusion = FusePyramid((8, 16), 24)
    levels = [torch.randn(2, 8, 10, 12), torch.randn(2, 16, 5, 6)]
    if order == "channels last":
        levels = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    with torch.no_grad():
        fused = fusion(levels)
        assert _convolves(lambda: fusion(levels)) == (order == "channels last" and HAS_ONEDNN)
        with torch.backends.mkldnn.flags(enabled=False):
            expected = fusion(levels)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-6)
    assert fused.is_contiguous()
