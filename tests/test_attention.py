from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk.attention import (
    attention_against_scale,
    gated_units,
    kernel_pair,
    record_attention,
)
from edge_sk.errors import InputError
from tests.scale_units import OneUnit, Units, brightness_batches

LivedIn = Callable[[nn.Module], nn.Module]


@torch.no_grad()
def sharpen(model: nn.Module) -> nn.Module:
    """Make the attention leave 1/M, at which it starts, so that a wrong one is noticed."""
    for unit in gated_units(model).values():
        assert unit.gate is not None
        nn.init.normal_(unit.gate.expand.weight, std=1.0)
        nn.init.normal_(unit.gate.reduce.weight, std=1.0)
    return model


def grafted() -> nn.Module:
    return edge_sk.graft(timm.create_model("mobilenetv2_050", num_classes=10), init="random")[0]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: edge_sk.create_model("sk_shufflenetv2_0.5"), id="zoo"),
        pytest.param(lambda: edge_sk.create_model("sk_shufflenetv2_0.5@kernels=3+3d2+3d3"), id="three branches"),
        pytest.param(grafted, id="grafted"),
    ],
)
@torch.no_grad()
def test_the_recorded_attention_reproduces_the_units_output(
    build: Callable[[], nn.Module], digits: Tensor, lived_in: LivedIn
) -> None:
    model = sharpen(lived_in(build()))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    units = gated_units(model)
    for name, unit in units.items():
        unit.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0].clone(), output.clone())})
        )
    with record_attention(model) as attention:
        model(digits[:6])
    assert attention.keys() == units.keys()
    assert len(units) > 10
    for name, unit in units.items():
        x, expected = seen[name]
        weights = attention[name]
        assert weights.shape == (6, len(unit.branches), unit.out_channels)
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
        maps = torch.stack([branch(x) for branch in unit.branches], 1)
        torch.testing.assert_close((weights[..., None, None] * maps).sum(1), expected, rtol=1e-4, atol=1e-5)
        assert weights.std() > 0.01
        wrong = weights.flip(1)
        assert not torch.allclose((wrong[..., None, None] * maps).sum(1), expected, rtol=1e-2, atol=1e-3)


def test_the_hooks_go_when_the_recording_ends(digits: Tensor) -> None:
    model = edge_sk.create_model("sk_shufflenetv2_0.5").eval()
    with record_attention(model) as attention:
        model(digits[:1])
    before = {name: value.clone() for name, value in attention.items()}
    model(digits[1:3])
    assert all(torch.equal(attention[name], before[name]) for name in before)
    assert not any(module._forward_hooks for module in model.modules())


def test_networks_without_selection_are_refused() -> None:
    for name in ("shufflenetv2_0.5", "sk_shufflenetv2_0.5@select=false"):
        with (
            pytest.raises(InputError, match="no selective kernels that select"),
            record_attention(edge_sk.create_model(name)),
        ):
            pass


@pytest.mark.parametrize(
    ("kernels", "expected"), [("3+3d2", (0, 1)), ("5+3", (1, 0)), ("3+3d3+3d2", (0, 1)), ("3+3", (0, 1))]
)
def test_the_pair_is_of_the_smallest_and_the_largest_extent(kernels: str, expected: tuple[int, int]) -> None:
    assert kernel_pair(edge_sk.SelectiveKernel(8, 8, kernels=kernels, groups=8)) == expected


def test_a_known_shift_is_found_with_its_sign_and_its_means() -> None:
    model = OneUnit().train()
    batches = brightness_batches({1.0: 0.5, 1.5: 2.0, 2.0: 6.0})
    result = attention_against_scale(model, batches, lambda images: images, num_classes=3)
    assert model.training
    assert result.by_image.shape == (3, 6, 1)
    model.eval()
    with record_attention(model) as attention, torch.no_grad():
        model(torch.cat([images for images, _ in batches[2.0]]))
    difference = (attention["unit"][:, 1] - attention["unit"][:, 0]).double()
    torch.testing.assert_close(result.by_image[2, :, 0], difference.mean(1))
    torch.testing.assert_close(result.by_channel[0][2], difference.mean(0))
    torch.testing.assert_close(result.larger_by_channel[0][2], attention["unit"][:, 1].double().mean(0))
    torch.testing.assert_close(result.by_class[2, 1, 0], difference[1::2].mean())
    assert result.by_class[2, 2].isnan().all()


def test_labels_that_the_network_does_not_know_are_refused() -> None:
    batches = brightness_batches({1.0: 1.0})
    with pytest.raises(InputError, match=r"an image is of class 1, the network knows 1 classes"):
        attention_against_scale(OneUnit(), batches, lambda images: images, num_classes=1)
    batches = {1.0: [(images, labels - 1) for images, labels in batches[1.0]]}
    with pytest.raises(InputError, match=r"an image is of class -1, the network knows 2 classes"):
        attention_against_scale(OneUnit(), batches, lambda images: images, num_classes=2)


def test_every_module_keeps_its_mode() -> None:
    model = Units().train()
    model.second.eval()  # as who freezes a part's batch norm would
    before = [module.training for module in model.modules()]
    attention_against_scale(model, brightness_batches({1.0: 1.0}), lambda images: images, num_classes=2)
    assert [module.training for module in model.modules()] == before


def test_scales_of_different_images_are_refused() -> None:
    batches = brightness_batches({1.0: 1.0, 2.0: 2.0})
    images, labels = batches[2.0][0]
    batches[2.0][0] = images.flip(0), labels.flip(0)
    with pytest.raises(InputError, match=r"scale 2\.0 holds other images"):
        attention_against_scale(OneUnit(), batches, lambda images: images, num_classes=2)


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="no images to record attention on"):
        attention_against_scale(OneUnit(), {1.0: []}, lambda images: images, num_classes=2)
    with pytest.raises(InputError, match="there is no scale to record attention at"):
        attention_against_scale(OneUnit(), {}, lambda images: images, num_classes=2)
