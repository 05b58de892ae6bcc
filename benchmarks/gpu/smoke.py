"""One call of an operator, forward and backward, against eager and float64.

``python -m benchmarks.gpu.smoke OPERATOR``
"""

from __future__ import annotations

import argparse

import torch

import vss_kernels
from benchmarks.harness import DEVICE
from benchmarks.smallest import CASES, Case
from tests.support.precision import SLACK, error, outputs_and_gradients
from vss_kernels._runtime import backends

DTYPES = (torch.float32, torch.bfloat16)


def errors(case: Case, operator: str, backend: str, dtype: torch.dtype) -> list[tuple[str, float]]:
    """Returns how far a result and its gradients are from float64, relative to the largest value.

    Args:
        case: The work.
        operator: Public name.
        backend: Which backend runs it.
        dtype: Of the inputs.

    Returns:
        A name and an error for each; of positions and classes, the fraction that differs.
    """
    inputs = case.on(DEVICE, dtype)
    exact_inputs = [t.double() if t.is_floating_point() else t for t in inputs]
    if not case.differentiable:
        with vss_kernels.backend("eager", operator):
            expected = case.run(*exact_inputs)
        with vss_kernels.backend(backend, operator):
            found = case.run(*inputs)
        return [("fraction that differs", float((found != expected).double().mean()))]
    with vss_kernels.backend("eager", operator):
        exact = outputs_and_gradients(case.run, exact_inputs)
    with vss_kernels.backend(backend, operator):
        results = outputs_and_gradients(case.run, inputs)
    return [
        ("result" if number == 0 else f"gradient {number}", error(have, want.cpu()))
        for number, (have, want) in enumerate(zip(results, exact, strict=True))
    ]


def check(operator: str, backend: str, dtype: torch.dtype) -> bool:
    """Prints the errors of one backend beside eager's; returns whether they follow the tests' rule.

    The rule: an error of at most twice eager's, plus rounding.
    """
    torch.manual_seed(0)
    case = CASES[operator]()
    passed = True
    plain = errors(case, operator, "eager", dtype)
    for (name, have), (_, eager) in zip(errors(case, operator, backend, dtype), plain, strict=True):
        slack = SLACK[dtype] if case.differentiable else 0.0
        good = have <= 2 * eager + slack
        passed &= good
        print(
            f"{operator} | {backend} | {str(dtype).removeprefix('torch.')} | {name}: {have:.1e}, "
            f"eager {eager:.1e}{'' if good else '  WRONG'}",
            flush=True,
        )
    return passed


def check_all(operator: str) -> bool:
    """Checks every backend but eager that can run here; False if one is wrong or none can."""
    fused = [
        implementation
        for implementation in backends.operators()[operator].implementations
        if implementation.backend != "eager"
    ]
    # Positions and classes of bfloat16 inputs tie, and then either is right.
    dtypes = DTYPES if CASES[operator]().differentiable else DTYPES[:1]
    passed, ran = True, False
    for implementation in fused:
        case = CASES[operator]()
        reason = implementation.available()
        if reason is None:
            try:
                with vss_kernels.backend(implementation.backend, operator):
                    case.run(*case.on(DEVICE, torch.float32))
            except backends.BackendError as refusal:
                reason = str(refusal)
        if reason is not None:
            print(f"{operator} | {implementation.backend} cannot run here: {reason}", flush=True)
            continue
        ran = True
        for dtype in dtypes:
            passed &= check(operator, implementation.backend, dtype)
    return passed and (ran or DEVICE == "cpu")


def main() -> int:
    """Checks the operator named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operator", choices=sorted(CASES))
    return 0 if check_all(parser.parse_args().operator) else 1


if __name__ == "__main__":
    raise SystemExit(main())
