"""Products in TF32: of numbers rounded to the nearest, as a GPU's own matrix products are."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

import vss_kernels
from tests.support.precision import error
from tests.support.relation_cases import make_index, make_tokens
from tests.support.triton_machine import DEVICE
from vss_kernels import masked_affinity
from vss_kernels._runtime.triton_tiles import round_to_tf32


@triton.jit
def rounding_kernel(p_in, p_out, size: tl.constexpr):
    """Rounds a vector."""
    offsets = tl.arange(0, size)
    tl.store(p_out + offsets, round_to_tf32(tl.load(p_in + offsets)))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest number with 10 bits behind the leading one, in float64; ties away from zero."""
    mantissa, exponent = x.double().frexp()
    scaled = mantissa * 2**11
    return (scaled.sign() * (scaled.abs() + 0.5).floor()).ldexp(exponent - 11)


def test_rounding():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(256, generator=generator) * torch.linspace(-100, 100, 256).exp2()
    values[:4] = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-20, 2 - 2**-23])
    special = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    values[4:8] = special
    values[8] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a GPU's NaN
    inputs = values.to(DEVICE)
    result = torch.empty_like(inputs)
    rounding_kernel[(1,)](inputs, result, 256)
    result = result.cpu()
    assert torch.equal(result[4:8], special)
    assert result[8].isnan()
    normal = torch.cat([values[:4], values[16:]])
    assert torch.equal(torch.cat([result[:4], result[16:]]).double(), rounded(normal))
    assert (result[:4].double() == torch.tensor([1 + 2**-10, -1 - 2**-10, 1.0, 2.0])).all()


@pytest.mark.parametrize("float32_products", ["tf32"], indirect=True)
@pytest.mark.usefixtures("float32_products")
def test_products_and_gradients_are_of_rounded_numbers():
    target, reference = make_tokens(1, 2, 70, 66, 64, torch.float32, DEVICE)
    index = make_index(1, 2, 66, 33, DEVICE)
    kept = reference.cpu().gather(2, index.cpu()[..., None].expand(-1, -1, -1, 64))
    target.requires_grad_()
    with vss_kernels.backend("triton"):
        affinity = masked_affinity(target, reference, index)
        grad = torch.randn(affinity.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad(affinity, target, grad.to(DEVICE))
    expected = rounded(kept) @ rounded(target.detach().cpu())[:, None].mT
    assert error(affinity.detach(), expected) <= 1e-6
    expected = (rounded(grad).mT @ rounded(kept)).sum(1)
    assert error(gradient, expected) <= 1e-6
