"""The resize with a gathered gradient: the definition's numbers, and no scattered additions."""

from __future__ import annotations

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.nn import functional as F

import vss_kernels
from tests.support.definitions import resize_matrix
from tests.support.kernel_count import traced
from tests.support.precision import SLACK, error
from tests.support.tiny_training import NUM_CLASSES, make_module
from vss_kernels._runtime import native
from vss_kernels.nn.resizing import resize
from vss_models import ClipLoss, create_model
from vss_models.training.step import TrainingStep

NAMES = pytest.mark.parametrize("name", ["mrcfa_b0", "cffm_b0", "segformer_b0"])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# (size, resized): exact halves, exact doubles, no whole ratio, one side each way, equal
CASES = [
    ((12, 20), (6, 10)),
    ((6, 10), (12, 20)),
    ((13, 21), (6, 10)),
    ((6, 10), (13, 21)),
    ((6, 20), (12, 10)),
    ((5, 7), (5, 7)),
]
SCATTERED = ("upsample_bilinear2d_backward", "index_put", "scatter", "index_add")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "resized"), CASES, ids=str)
def test_result_and_gradient_are_the_definition(size, resized, dtype, backend, device):
    """The result as PyTorch's own bit for bit, the gradient as exact as its rounding allows."""
    if backend == "native" and native.problem() is not None:
        pytest.skip(str(native.problem()))
    if backend == "native" and dtype == torch.float64:
        pytest.skip("native kernels do not compute in float64")
    maps = torch.randn(2, 3, *size, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(2, 3, *resized, dtype=dtype, device=device)
    with vss_kernels.backend(backend):
        resized_maps = resize(maps, resized)
        resized_maps.backward(grad)
    assert torch.equal(resized_maps, F.interpolate(maps, resized, mode="bilinear"))
    rows, columns = (
        resize_matrix(before, after, align_corners=False)
        for before, after in zip(size, resized, strict=True)
    )
    expected = rows.mT @ grad.double().cpu() @ columns
    (plain,) = torch.autograd.grad(F.interpolate(maps, resized, mode="bilinear"), maps, grad)
    assert maps.grad is not None
    assert maps.grad.dtype == dtype
    slack = SLACK.get(dtype, 1e-14)
    assert error(maps.grad, expected) <= 2 * error(plain, expected) + slack


def test_gradcheck_of_the_plain_formulation():
    for size, resized in CASES:
        maps = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, to=resized: resize(x, to), maps)


@NAMES
def test_no_gradient_of_a_training_step_is_scattered(name):
    """Additions whose order a GPU does not fix: two runs would differ."""
    with traced() as counter:
        with torch.autocast("cpu", enabled=False):
            model = create_model(name, 124).train()
            clip = torch.empty(2, 4, 3, 96, 96)
            labels = torch.empty(2, 4, 96, 96, dtype=torch.uint8)
        counter.kernels.clear()
        TrainingStep(model, ClipLoss())(clip, labels)
    scattered = [key for key in counter.kernels if any(part in key for part in SCATTERED)]
    assert scattered == []


@pytest.mark.parametrize(("size", "resized"), CASES, ids=str)
def test_no_gradient_is_scattered_by_a_compiler(size, resized):
    """Which takes operators to pieces: PyTorch's own resize becomes additions at indices."""
    torch.compiler.reset()
    found: list[str] = []

    def look(graph, _):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=look, bw_compiler=look, decompositions=select_decomp_table())
    maps = torch.randn(2, 3, *size, requires_grad=True)
    torch.compile(lambda: resize(maps * 1, resized).square().sum(), backend=backend)().backward()
    assert maps.grad is not None
    assert len(found) > 10
    assert [target for target in found if any(part in target for part in SCATTERED)] == []


@pytest.mark.gpu
@NAMES
def test_two_runs_on_a_gpu_agree_bit_for_bit(name):
    module = make_module(name)
    model = module.model.cuda().train()
    clip = torch.randn(2, 4, 3, 64, 96, device="cuda")
    labels = torch.randint(NUM_CLASSES, (2, 4, 64, 96), dtype=torch.uint8, device="cuda")
    runs = []
    with torch.backends.cudnn.flags(deterministic=True):
        for _ in range(2):
            torch.manual_seed(0)
            loss = module.loss(model(clip), labels)
            runs.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
