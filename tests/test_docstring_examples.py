"""Every public name of vss_kernels has an example in its docstring, and the examples are true."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

import vss_kernels

PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (vss_kernels, vss_kernels.nn)
    for name in package.__all__
    if callable(getattr(package, name))
}


def test_all_public_functions_and_classes_are_tested():
    others = {name for name in vss_kernels.__all__ if f"vss_kernels.{name}" not in PUBLIC}
    assert others == {"__version__", "nn"}
    assert all(inspect.isclass(value) or inspect.isfunction(value) for value in PUBLIC.values())


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    documentation = inspect.getdoc(PUBLIC[name])
    assert "\nExample:\n" in documentation, f"{name} has no example"
    names = {"torch": torch, "vss_kernels": vss_kernels}
    example = doctest.DocTestParser().get_doctest(documentation, names, name, None, None)
    assert example.examples
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.failed == 0, "".join(report)
