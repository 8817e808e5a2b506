from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk.attention import (
    attention_against_scale,
    direction,
    gated_units,
    kernel_pair,
    markdown,
    record_attention,
    summarize,
)
from edge_sk.confidence import mean_interval
from edge_sk.errors import InputError
from recipes.attention_figure import plot

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


class Preferring(nn.Module):
    """A gate that likes the second branch the more, the brighter the image is."""

    def forward(self, s: Tensor) -> Tensor:
        likes = s.mean(1, keepdim=True).sigmoid()
        return torch.stack([(1 - likes).expand_as(s), likes.expand_as(s)], 1)


class OneUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = edge_sk.SelectiveKernel(4, 4, groups=4)
        for branch in self.unit.branches:
            branch.requires_grad_(False)
            nn.init.constant_(branch.get_submodule("conv").weight, 0.05)  # type: ignore[arg-type]
        self.unit.gate = Preferring()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x)


def brightness_batches(factors: dict[float, float], count: int = 6) -> dict[float, list[tuple[Tensor, Tensor]]]:
    images = torch.rand(count, 4, 12, 12)
    labels = torch.arange(count) % 2
    return {
        scale: [(images[:4] * factor, labels[:4]), (images[4:] * factor, labels[4:])]
        for scale, factor in factors.items()
    }


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

    summary = summarize([result], ["a", "b", "c"])
    unit = summary["units"][0]
    assert unit["difference"] == sorted(unit["difference"])
    assert (unit["smaller"], unit["larger"]) == ("3", "3d2")
    assert unit["shift"] > 0
    assert direction(unit) == "larger"
    assert unit["by_class"][0][2] is None
    assert summary["interval_over"] == "images"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    # Falling brightness moves it the other way.
    falling = attention_against_scale(
        model, brightness_batches({1.0: 6.0, 2.0: 0.5}), lambda images: images, num_classes=2
    )
    assert direction(summarize([falling])["units"][0]) == "smaller"


def test_intervals_over_runs_use_the_runs(tmp_path: Path) -> None:
    model = OneUnit()
    runs = [
        attention_against_scale(
            model, brightness_batches({1.0: 1.0, 2.0: factor}), lambda images: images, num_classes=2
        )
        for factor in (2.0, 3.0, 4.0)
    ]
    summary = summarize(runs)
    shifts = [float((run.by_image[1] - run.by_image[0]).mean()) for run in runs]
    assert (summary["runs"], summary["interval_over"]) == (3, "runs")
    assert summary["units"][0]["shift_ci95"] == pytest.approx(mean_interval(shifts), abs=1e-5)
    # A channel of one network is no channel of another.
    first = runs[0].larger_by_channel[0][1].tolist()
    assert summary["units"][0]["larger_by_channel"][1] == pytest.approx(first, abs=1e-4)
    assert first != pytest.approx(runs[1].larger_by_channel[0][1].tolist(), abs=1e-4)
    table = markdown(summary)
    assert "| `unit` | 12x12 | 3d2 - 3 |" in table
    assert table.count("|") == 8 * 3
    assert "from scale 1 to 2; intervals over 3 networks" in table
    plot(summary, tmp_path / "attention.png", title="one unit")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


class Units(nn.Module):
    """Units that like brightness, and one that dislikes it, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = OneUnit(), OneUnit(), OneUnit()
        self.second.unit.gate = Disliking()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        return self.third(nn.functional.avg_pool2d(first + second, 2))


class Disliking(Preferring):
    def forward(self, s: Tensor) -> Tensor:
        return super().forward(s).flip(1)


def test_units_are_grouped_by_the_size_of_their_maps() -> None:
    runs = [
        attention_against_scale(
            Units(), brightness_batches({1.0: 1.0, 2.0: factor}), lambda images: images, num_classes=2
        )
        for factor in (2.0, 4.0)
    ]
    assert runs[0].maps == ((12, 12), (12, 12), (6, 6))
    summary = summarize(runs)
    large, small = summary["by_map"]
    assert (large["map"], large["units"]) == ([12, 12], ["first.unit", "second.unit"])
    assert (small["map"], small["units"]) == ([6, 6], ["third.unit"])
    shifts = torch.stack([(run.by_image[1] - run.by_image[0]).mean(0) for run in runs])
    # The two on large maps move apart: their mean hides what the size of their shifts shows.
    assert large["shift"] == pytest.approx(float(shifts[:, :2].mean()), abs=1e-5)
    assert large["shift_ci95"] == pytest.approx(mean_interval(shifts[:, :2].mean(1).tolist()), abs=1e-5)
    assert large["magnitude"] == pytest.approx(float(shifts[:, :2].abs().mean()), abs=1e-5)
    assert abs(large["shift"]) < 0.2 * large["magnitude"]
    assert small["magnitude"] == pytest.approx(abs(small["shift"]), abs=1e-5)


class Pyramid(Units):
    """Back on the first size of map after a smaller one, with other kernels in between."""

    def __init__(self) -> None:
        super().__init__()
        self.second.unit = edge_sk.SelectiveKernel(4, 4, kernels="3+5", groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.third(x)


def test_groups_are_of_one_map_size_and_one_pair_of_kernels() -> None:
    batches = brightness_batches({1.0: 1.0, 2.0: 2.0})
    summary = summarize([attention_against_scale(Pyramid(), batches, lambda images: images, num_classes=2)])
    found = [(group["units"], group["larger"]) for group in summary["by_map"]]
    assert found == [(["first.unit", "third.unit"], "3d2"), (["second.unit"], "5")]


def test_of_equal_kernels_none_is_larger() -> None:
    up = {"shift_ci95": [0.1, 0.2]}
    assert direction(up | {"smaller": "3", "larger": "3d2"}) == "larger"
    assert direction(up | {"smaller": "3", "larger": "3"}) == "last"
    assert direction({"shift_ci95": [-0.2, -0.1], "smaller": "5", "larger": "3d2"}) == "first"


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


def test_one_image_of_one_network_has_no_interval() -> None:
    batches = {
        scale: [(images[:1], labels[:1])]
        for scale, ((images, labels), _) in brightness_batches({1.0: 1.0, 2.0: 2.0}).items()
    }
    with pytest.raises(InputError, match="one image of one network has no interval"):
        summarize([attention_against_scale(OneUnit(), batches, lambda images: images, num_classes=2)])


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
    with pytest.raises(InputError, match="there is no network to summarize the attention of"):
        summarize([])


def test_runs_of_different_networks_are_refused() -> None:
    runs = [
        attention_against_scale(OneUnit(), brightness_batches(factors), lambda images: images, num_classes=2)
        for factors in ({1.0: 1.0, 2.0: 1.0}, {1.0: 1.0, 1.5: 1.0})
    ]
    with pytest.raises(InputError, match="the checkpoints were given images of different scales or sizes"):
        summarize(runs)
    other = attention_against_scale(Units(), brightness_batches({1.0: 1.0, 2.0: 1.0}), lambda x: x, num_classes=2)
    with pytest.raises(InputError, match="the checkpoints are of different architectures"):
        summarize([runs[0], other])


def test_students_interval_against_the_textbook() -> None:
    # Five values of mean 3 and standard deviation sqrt(2.5); t(0.975, 4) = 2.776.
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (low, high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))
    assert mean_interval([1.0]) == (-math.inf, math.inf)
