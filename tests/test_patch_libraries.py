"""patch on models of transformers and segmentation_models_pytorch themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vss_kernels
from vss_kernels.patch.kinds import kinds_of

# Neither is needed by anything else: these tests are skipped by name where one is not installed.
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
)


def make_segformer(num_labels=19):
    config = transformers.SegformerConfig(
        num_labels=num_labels,
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 24, 32, 48],
        decoder_hidden_size=32,
        semantic_loss_ignore_index=255,
        classifier_dropout_prob=0.0,  # its random numbers follow the layout in memory
    )
    return transformers.SegformerForSemanticSegmentation(config)


def make_batch(classes=19, dtype=torch.float64):
    images = torch.randn(2, 3, 64, 96, dtype=dtype)
    labels = torch.randint(classes, (2, 64, 96))
    labels[:, :10] = 255
    return images, labels


def assert_close(have, want):
    """Equal to the rounding of float64 sums, relative to the largest value."""
    assert have.shape == want.shape
    assert (have - want).abs().max() <= 1e-9 * want.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_transformers_answers_and_gradients(training):
    model = make_segformer().double().train(training)
    keys = list(model.state_dict())
    images, labels = make_batch()
    other = copy.deepcopy(model)

    def step(network):
        torch.manual_seed(0)  # the same drop paths
        answer = network(pixel_values=images, labels=labels)
        answer.loss.backward()
        return answer

    expected = step(other)
    report = vss_kernels.patch(model)
    assert [(part.path, part.operator) for part in report.replaced] == [
        ("", "upsample_cross_entropy"),
        ("decode_head", "fuse_pyramid"),
    ]
    assert list(model.state_dict()) == keys
    answer = step(model)
    assert not model.decode_head._forward_hooks
    assert_close(answer.loss, expected.loss)
    assert_close(answer.logits, expected.logits)
    parameters = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, parameters[name].grad)
    assert vss_kernels.unpatch(model) == 2
    assert torch.equal(model.eval()(images).logits, model(images).logits)
    assert not any(map(kinds_of, model.modules()))


def test_transformers_call_the_operators(tmp_path):
    model = make_segformer()
    images, labels = make_batch(dtype=torch.float32)
    vss_kernels.patch(model)
    with (
        vss_kernels.backend("triton", "fuse_pyramid"),  # which it has not
        pytest.raises(vss_kernels.BackendError, match="fuse_pyramid"),
    ):
        model(images)
    with vss_kernels.backend("triton", "upsample_cross_entropy"):
        model(images)  # no labels, no loss
        with pytest.raises(vss_kernels.BackendError, match="upsample_cross_entropy"):
            model(images, labels)
    tuple_answer = model(images, labels=labels, return_dict=False)
    assert tuple_answer[0].dim() == 0
    model.save_pretrained(tmp_path)
    again = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    assert not any(map(kinds_of, again.modules()))
    torch.testing.assert_close(again.eval()(images).logits, model.eval()(images).logits)


def test_transformers_with_one_class_are_refused():
    with pytest.raises(vss_kernels.PatchError, match="it has one class"):
        vss_kernels.patch(make_segformer(num_labels=1))


def test_transformers_with_two_losses_and_logits_of_full_size():
    backbone = transformers.ResNetConfig(
        out_features=["stage1", "stage2", "stage3", "stage4"],
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        embedding_size=16,
        layer_type="basic",
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        num_labels=19,
        hidden_size=32,
        auxiliary_in_channels=32,
        auxiliary_channels=16,
    )
    model = transformers.UperNetForSemanticSegmentation(config).double().eval()
    images, labels = make_batch()
    expected = model(images, labels=labels)
    vss_kernels.patch(model)
    answer = model(images, labels=labels)
    assert answer.logits.dense is None  # neither loss needed them
    assert_close(answer.loss, expected.loss)
    assert_close(answer.logits + 0, expected.logits)


def test_transformers_compile():
    model = make_segformer().eval()
    images, labels = make_batch(dtype=torch.float32)
    expected = model(images, labels=labels)
    vss_kernels.patch(model)
    compiled = torch.compile(model, backend="aot_eager")
    answer = compiled(images, labels=labels)
    torch.testing.assert_close(answer.loss, expected.loss)
    torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-4, atol=1e-5)


CRITERIA = [nn.CrossEntropyLoss(ignore_index=255), smp.losses.DiceLoss("multiclass")]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda loss: type(loss).__name__)
def test_segmentation_models_answers_and_gradients(criterion):
    model = smp.Segformer("mit_b0", encoder_weights=None, classes=19).double().eval()
    images, labels = make_batch()
    labels = labels.clamp(max=18) if isinstance(criterion, smp.losses.DiceLoss) else labels
    other = copy.deepcopy(model)
    expected = other(images)
    expected_loss = criterion(expected, labels)
    expected_loss.backward()
    report = vss_kernels.patch(model)
    assert [(part.path, part.operator) for part in report.replaced] == [
        ("decoder", "fuse_pyramid"),
        ("segmentation_head", "upsample_cross_entropy"),
    ]
    assert list(model.state_dict()) == list(other.state_dict())
    logits = model(images)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    loss = criterion(logits, labels)
    loss.backward()
    assert_close(loss, expected_loss)
    assert_close(logits + 0, expected)
    parameters = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, parameters[name].grad)


@pytest.mark.parametrize("name", ["FPN", "DeepLabV3Plus", "PSPNet", "UPerNet"])
def test_segmentation_models_of_other_kinds_end_in_the_operator(name):
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=19).eval()
    images, labels = make_batch(dtype=torch.float32)
    expected = F.cross_entropy(model(images), labels, ignore_index=255)
    vss_kernels.patch(model)
    logits = model(images)
    torch.testing.assert_close(F.cross_entropy(logits, labels, ignore_index=255), expected)
    assert logits.dense is None


def test_levels_that_the_operator_does_not_take_are_refused():
    model = smp.Segformer("resnet18", encoder_weights=None, classes=19)
    report = vss_kernels.patch(model, strict=False)
    (refused,) = report.refused
    assert refused.path == "decoder"
    assert "quarter of the image's size" in refused.reason


def test_activations_of_segmentation_models_are_refused():
    model = smp.Segformer("mit_b0", encoder_weights=None, classes=19, activation="softmax2d")
    with pytest.raises(vss_kernels.PatchError, match="Activation follows the upsampling"):
        vss_kernels.patch(model)
