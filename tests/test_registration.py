"""Operators that are registered from Python: their gradient, by way of the extension or Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vss_kernels._runtime import native
from vss_kernels._runtime.registration import PythonOperator, python_operator

calls: list[tuple[list[int], list[bool], float]] = []
"""Plain arguments of each call of a backward operator."""


def make_operator(name: str) -> PythonOperator:
    """Registers factor * x * y and a second result, and the gradient of the first one."""

    @python_operator(name)
    def product(
        x: Tensor, y: Tensor, index: Tensor, sizes: list[int], factor: float
    ) -> tuple[Tensor, Tensor]:
        return factor * x * y, x + y

    @python_operator(f"{name}_backward")
    def product_backward(
        total: Tensor, grad: Tensor, x: Tensor, sizes: list[int], needs: list[bool], factor: float
    ) -> tuple[Tensor, Tensor]:
        calls.append((sizes, needs, factor))
        nothing = grad.new_empty(0)
        y = total - x
        return (
            factor * grad * y if needs[0] else nothing,
            factor * grad * x if needs[1] else nothing,
        )

    product.differentiate_by(product_backward, results=("out", "total"))
    return product


@pytest.fixture(scope="module", params=["extension", "python"])
def product(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(native, "extension", lambda: None)
        elif native.problem() is not None:
            pytest.skip(str(native.problem()))
        yield make_operator(f"test_product_{request.param}")


def run(product: PythonOperator, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return product(x, y, torch.tensor([2]), [3, 4], 0.5)


def leaves() -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, 3, dtype=torch.float64).unbind(0)
    return x.clone().requires_grad_(), y.clone().requires_grad_()


def test_gradients_are_the_backward_operators(product):
    x, y = leaves()
    assert torch.autograd.gradcheck(lambda *tensors: run(product, *tensors)[0], (x, y))
    assert calls[-1] == ([3, 4], [True, True], 0.5)


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradients_that_are_not_wanted_are_not_computed(product, wanted):
    tensors = leaves()
    (tensors[1 - wanted]).requires_grad_(False)
    out, _ = run(product, *tensors)
    out.sum().backward()
    torch.testing.assert_close(tensors[wanted].grad, 0.5 * tensors[1 - wanted])
    assert tensors[1 - wanted].grad is None
    assert calls[-1][1] == [wanted == 0, wanted == 1]


def test_only_the_first_result_has_a_gradient(product):
    out, total = run(product, *leaves())
    assert out.requires_grad
    assert not total.requires_grad


def test_nothing_is_recorded_without_need(product):
    x, y = leaves()
    with torch.no_grad():
        assert not run(product, x, y)[0].requires_grad
    assert not run(product, x.detach(), y.detach())[0].requires_grad


def test_a_second_derivative_is_refused(product):
    x, y = leaves()
    (gradient,) = torch.autograd.grad(run(product, x, y)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{product.name}.*no second derivative"):
        gradient.sum().backward()


def test_a_saved_tensor_that_changed_in_place_is_noticed(product):
    x, y = leaves()
    out, _ = run(product, x, y)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_another_name_than_the_operators_is_an_error():
    @python_operator("test_unknown_name")
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @python_operator("test_unknown_name_backward")
    def backward(grad: Tensor, other: Tensor) -> tuple[Tensor]:
        return (grad,)

    with pytest.raises(ValueError, match="other is neither an argument of test_unknown"):
        forward.differentiate_by(backward)
