"""The end of Mix-FFN in one step: the composition's numbers, and one map less that is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vss_kernels
from tests.support.precision import assert_as_accurate_as_eager, outputs_and_gradients
from vss_kernels import depthwise_gelu
from vss_kernels._runtime import native
from vss_kernels.nn import depthwise_gelu_linear

needs_native = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# (batch, height, width, channels), outgoing channels
SIZES = [((2, 15, 15, 64), 16), ((1, 33, 70, 40), 9), ((2, 1, 3, 5), 2), ((0, 4, 4, 3), 2)]


def make_inputs(size, outgoing, dtype=torch.float32, device="cpu"):
    channels = size[-1]
    shapes = (size, (channels, 1, 3, 3), (channels,), (outgoing, channels), (outgoing,))
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]


def composition(x, kernel, shift, weight, bias=None):
    return F.linear(depthwise_gelu(x, kernel, shift), weight, bias)


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "outgoing"), SIZES, ids=str)
def test_is_as_accurate_as_the_eager_composition(size, outgoing, dtype, device, backend):
    inputs = make_inputs(size, outgoing, dtype, device)
    assert_as_accurate_as_eager(depthwise_gelu_linear, inputs, "depthwise_gelu", backend)


@needs_native
@pytest.mark.parametrize("has_bias", [True, False])
def test_bits_are_those_of_the_composition(has_bias):
    inputs = make_inputs((2, 17, 21, 24), 12)[: 4 + has_bias]
    with vss_kernels.backend("native"):
        found = outputs_and_gradients(depthwise_gelu_linear, inputs)
        expected = outputs_and_gradients(composition, inputs)
    for have, want in zip(found, expected, strict=True):
        assert torch.equal(have, want)


def test_gradients_in_double_precision():
    inputs = [t.requires_grad_() for t in make_inputs((1, 3, 4, 2), 3, torch.float64)]
    assert torch.autograd.gradcheck(depthwise_gelu_linear, inputs)


@needs_native
def test_only_what_goes_in_is_kept():
    """Nothing of the map between the convolution and the linear layer."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs((2, 5, 7, 20), 6)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        depthwise_gelu_linear(*inputs)
    assert {tensor.data_ptr() for tensor in saved} == {t.data_ptr() for t in inputs[:4]}


@needs_native
@pytest.mark.parametrize("wanted", range(5))
def test_each_gradient_alone(wanted):
    inputs = make_inputs((1, 6, 5, 8), 4)
    everything = outputs_and_gradients(depthwise_gelu_linear, inputs)
    inputs[wanted].requires_grad_()
    out = depthwise_gelu_linear(*inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    (gradient,) = torch.autograd.grad(out, inputs[wanted], cotangent)
    torch.testing.assert_close(gradient, everything[1 + wanted])


@needs_native
def test_under_autocast():
    """Full-precision weights get gradients in full precision, of a narrow composition."""
    leaves = [tensor.requires_grad_() for tensor in make_inputs((2, 6, 5, 16), 8)]
    results = []
    for function in (depthwise_gelu_linear, composition):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(*leaves)
        assert out.dtype == torch.bfloat16
        gradients = torch.autograd.grad(out.float().square().mean(), leaves)
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        results.append((out, *gradients))
    for have, want in zip(*results, strict=True):
        assert torch.equal(have, want)


@needs_native
@pytest.mark.parametrize("grad_first", [True, False])
def test_compiles_in_one_piece(grad_first):
    torch.compiler.reset()
    inputs = make_inputs((2, 6, 5, 8), 4)
    inputs[0].requires_grad_(grad_first)
    inputs[3].requires_grad_()
    compiled = torch.compile(depthwise_gelu_linear, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(depthwise_gelu_linear, inputs)
    for have, want in zip(outputs_and_gradients(compiled, inputs), expected, strict=True):
        torch.testing.assert_close(have, want)


@needs_native
def test_a_second_derivative_is_refused():
    inputs = [tensor.requires_grad_() for tensor in make_inputs((1, 4, 4, 4), 2)]
    out = depthwise_gelu_linear(*inputs)
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


def test_without_gradients_it_is_the_composition():
    inputs = make_inputs((2, 6, 5, 8), 4)
    torch.testing.assert_close(depthwise_gelu_linear(*inputs), composition(*inputs))
