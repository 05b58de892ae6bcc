"""patch: the affinity module of MRCFA and the window attention of CFFM, in the released layout."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import vss_kernels
from tests.support import foreign_modules, golden_io
from tests.support.aggregation_cases import KEEP, PUBLISHED
from vss_kernels.patch.kinds import kinds_of

SCALES = (2, 3, 4)


def affinity_arguments(golden):
    inputs = {name: tensor.requires_grad_() for name, tensor in golden.group("input").items()}
    ignored = torch.zeros(1)
    references = [ignored, *(inputs[f"reference_scale{scale}"] for scale in SCALES)]
    targets = [ignored, *(inputs[f"target_scale{scale}"] for scale in SCALES)]
    return inputs, (references, targets)


def make_affinity(variant):
    golden = golden_io.load(f"op_affinity_{variant}")
    module = foreign_modules.Affinity((16, 40, 64), PUBLISHED[variant], KEEP[variant])
    module.load_state_dict(golden.group("state"))
    return golden, module


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_affinity_golden(variant, patched):
    golden, module = make_affinity(variant)
    if patched:
        vss_kernels.patch(module)
        assert kinds_of(module)
    inputs, arguments = affinity_arguments(golden)
    affinity, mask = module(*arguments)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, golden.tensors["output.token_mask"].bool())
    assert affinity.is_contiguous()
    golden_io.assert_output(affinity, golden.tensors["output.affinity"])
    affinity.backward(golden.tensors["cotangent.affinity"])
    golden_io.assert_gradients(
        {name: tensor.grad for name, tensor in inputs.items()}, golden.group("grad.input")
    )
    golden_io.assert_gradients(
        {name: parameter.grad for name, parameter in module.named_parameters()},
        golden.group("grad.state"),
        golden_io.biases_without_effect(module),
    )


def test_the_operators_compute_it():
    golden, module = make_affinity("b1")
    vss_kernels.patch(module)
    # float64 is refused by the native backend: so that the operator is seen to be called.
    arguments = [
        [maps.detach().double() for maps in scales] for scales in affinity_arguments(golden)[1]
    ]
    with vss_kernels.backend("native", "aggregate_affinity"):
        with pytest.raises(vss_kernels.BackendError, match="aggregate_affinity"):
            module.double()(*arguments)
        vss_kernels.unpatch(module)
        module(*arguments)


def test_unequal_grids_are_left_to_the_original():
    """360 rows make 12 rows at 1/32, but 11 on the grid of the reduced references."""
    module = foreign_modules.Affinity((4, 6, 8), PUBLISHED["b2"], 0.5)
    references = [torch.randn(1, 3, dim, rows, 5) for dim, rows in ((4, 3), (6, 3), (8, 4))]
    target = [
        torch.randn(1, 1, dim, rows, columns)
        for dim, rows, columns in ((4, 12, 20), (6, 6, 10), (8, 4, 5))
    ]
    arguments = ([None, *references], [None, *target])
    expected = module(*arguments)
    vss_kernels.patch(module)
    for have, want in zip(module(*arguments), expected, strict=True):
        assert torch.equal(have, want)


def test_attention_of_released_layout_is_the_golden_one():
    for size in ("7x14", "14x21", "21x28"):
        for patched in (False, True):
            golden = golden_io.load(f"op_focal_attention_{size}")
            module = foreign_modules.WindowAttention(64, 2)
            module.load_state_dict(golden.group("state"))
            if patched:
                vss_kernels.patch(module)
                assert kinds_of(module)
            inputs = {
                name: tensor.requires_grad_() for name, tensor in golden.group("input").items()
            }
            references = [inputs[f"reference{i}_pooled"] for i in range(3)]
            x_all = [[inputs["target"], inputs["target_pooled"]], *references]
            masks = [[None, None], None, None, None]
            windows = module(x_all, mask_all=masks, batch_size=len(inputs["target"]), num_clips=4)
            assert masks == [[None, None], None, None, None]
            golden_io.assert_output(windows, golden.tensors["output.windows"])
            windows.backward(golden.tensors["cotangent.windows"])
            golden_io.assert_gradients(
                {name: tensor.grad for name, tensor in inputs.items()}, golden.group("grad.input")
            )
            golden_io.assert_gradients(
                {name: parameter.grad for name, parameter in module.named_parameters()},
                golden.group("grad.state"),
            )


def test_attention_with_masks_of_its_own_is_left_to_the_original():
    module = foreign_modules.WindowAttention(16, 2)
    vss_kernels.patch(module)
    x_all = [[torch.randn(1, 7, 7, 16), torch.randn(1, 1, 1, 16)]]
    x_all += [torch.randn(1, side, side, 16) for side in (1, 2, 3)]
    with vss_kernels.backend("triton", "focal_attention"):  # not there without a GPU
        module(x_all, mask_all=[[torch.zeros(1), None], None, None, None])
        with pytest.raises(vss_kernels.BackendError, match="focal_attention"):
            module(x_all)


class Model(nn.Module):
    """Both modules at the places and under the names they have in released checkpoints."""

    def __init__(self):
        super().__init__()
        self.decode_head = nn.Module()
        self.decode_head.hypercorre_module = foreign_modules.Affinity(
            (128, 320, 512), PUBLISHED["b1"], KEEP["b1"]
        )
        self.decode_head.decoder_focal = nn.Module()
        self.decode_head.decoder_focal.blocks = nn.ModuleList([nn.Module()])
        self.decode_head.decoder_focal.blocks[0].attn = foreign_modules.WindowAttention(256, 8)


def test_keys_and_shapes_are_the_released_ones():
    model = Model()
    keys = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    released = {}
    for name in ("mrcfa_b1", "cffm_b1"):
        released.update(
            json.loads((golden_io.FOLDER / "checkpoint_keys" / f"{name}.json").read_text())
        )
    assert all(released[key] == shape for key, shape in keys.items())
    report = vss_kernels.patch(model)
    assert [part.path for part in report.replaced] == [
        "decode_head.hypercorre_module",
        "decode_head.decoder_focal.blocks.0.attn",
    ]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == keys
    assert vss_kernels.unpatch(model) == 2
    assert not any(map(kinds_of, model.modules()))


def affinity(**changes):
    module = foreign_modules.Affinity((4, 6, 8), PUBLISHED["b2"], 0.5)
    for name, value in changes.items():
        setattr(module, name, value)
    return module


def attention(**changes):
    module = foreign_modules.WindowAttention(16, 2)
    for name, value in changes.items():
        setattr(module, name, value)
    return module


class ScaledAffinity(foreign_modules.Affinity):
    def forward(self, query_frame, supp_frame):
        return super().forward([None, *(maps / 2 for maps in query_frame[1:])], supp_frame)


def hooked():
    module = attention()
    module.qkv.register_forward_hook(lambda *_: None)
    return module


def strided():
    module = affinity()
    module.hpn.encoder_layer3[0].conv2 = nn.Conv2d(1, 1, 5, padding=2, dilation=2)
    return module


def wrapped():
    module = affinity()
    module.forward = module.forward
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (affinity(threh=1.5), r"threh.*must be in \(0, 1\], not 1.5"),
        (affinity(k_top=0), "k_top must be a positive integer, not 0"),
        (affinity(q2=nn.Linear(6, 5)), "q1 to q3 and k1 to k3 must be linear layers"),
        (affinity(gamma=nn.Parameter(torch.ones(1))), "it has the parameter gamma"),
        (strided(), r"hpn.encoder_layer3 must have dilation \(1, 1\) at 0.conv2, not \(2, 2\)"),
        (wrapped(), "its forward was replaced on the instance"),
        (
            ScaledAffinity((4, 6, 8), PUBLISHED["b2"], 0.5),
            "it computes something else: on trial .* off",
        ),
        (affinity().to("meta"), "hold no values"),
        (attention(attn_drop=nn.Dropout(0.1)), "drops attention or results with probability 0.1"),
        (attention(scale=1.0), "scales queries by 1.0"),
        (attention(focal_l_clips=[1, 2]), "must be equally many"),
        (attention(window_size=(7, 5)), r"window_size must be square, not \(7, 5\)"),
        (attention(expand_size=2), r"to_neighbors must have shape .*, not \(1, 2, 49, 132\)"),
        (hooked(), "its part Linear has hooks"),
    ],
)
def test_what_differs_is_refused_with_its_reason(module, reason, capsys):
    before = type(module)
    with pytest.raises(vss_kernels.PatchError, match=reason):
        vss_kernels.patch(module)
    report = vss_kernels.patch(module, strict=False)
    assert not report.replaced
    assert type(module) is before
    assert "not replaced  (the model): " in capsys.readouterr().out


def test_patched_modules_compile_without_graph_breaks():
    attention_module, affinity_module = attention(), affinity()
    x_all = [[torch.randn(1, 7, 14, 16), torch.randn(1, 1, 2, 16)]]
    x_all += [torch.randn(1, side, 2 * side, 16) for side in (1, 2, 3)]
    references = [torch.randn(1, 3, dim, 3, 4) for dim in (4, 6, 8)]
    target = [torch.randn(1, 1, 4, 12, 16), torch.randn(1, 1, 6, 6, 8), torch.randn(1, 1, 8, 3, 4)]
    for module, arguments in (
        (attention_module, (x_all,)),
        (affinity_module, ([None, *references], [None, *target])),
    ):
        expected = module(*arguments)
        vss_kernels.patch(module)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-4, atol=1e-5)
