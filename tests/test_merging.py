"""A unit of fixed attention is one convolution; units are merged in the order of what they change for their cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import edge_sk
from edge_sk import InputError
from edge_sk.attention import gated_units, record_attention
from edge_sk.costs import Costs, Outcome, read_costs
from edge_sk.merging import cut, merged, path
from edge_sk.selective_kernel import SelectiveKernel
from tests.mutations import mutated, outcome

LivedIn = Callable[[nn.Module], nn.Module]


def fixed(unit: SelectiveKernel, attention: Tensor, x: Tensor) -> Tensor:
    """The unit as the paper's equation reads, with a given attention."""
    maps = torch.stack([branch(x) for branch in unit.branches])  # (M, N, C, H, W)
    return (attention[:, None, :, None, None] * maps).sum(0)


@pytest.mark.parametrize("act", [None, nn.ReLU, nn.Hardswish])
@pytest.mark.parametrize("kernels", ["3+3d2", "3+5", "1+3d3+7", "3+3", "3g4+5g8", "3g2+5g16+3d2g8", "1x7+3x1d2"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_a_fixed_attention_is_kept_exactly(
    kernels: str, stride: int, act: type[nn.Module] | None, norm: bool, lived_in: LivedIn
) -> None:
    unit = SelectiveKernel(16, 32, kernels=kernels, stride=stride, groups=16, act_layer=act, norm=norm).double()
    lived_in(unit)
    for name, parameter in unit.named_parameters():
        if name.endswith("conv.bias"):
            nn.init.normal_(parameter)
    attention = torch.softmax(torch.randn(len(unit.kernels), 32, dtype=torch.float64), 0)
    x = torch.randn(2, 16, 13, 13, dtype=torch.float64)
    module = merged(unit, attention)
    torch.testing.assert_close(module(x), fixed(unit, attention, x), atol=1e-12, rtol=1e-12)
    if act is None:
        height, width = zip(*(kernel.extents for kernel in unit.kernels), strict=True)
        assert isinstance(module, nn.Conv2d)
        assert module.kernel_size == (max(height), max(width))
    else:
        assert isinstance(module, SelectiveKernel)
        assert module.gate is None
        torch.testing.assert_close(module.fuse()(x), fixed(unit, attention, x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("channels", "groups", "stride"), [(8, 8, 1), (8, 8, 2), (8, 2, 1)])
def test_cut_is_the_least_squares_fit(channels: int, groups: int, stride: int) -> None:
    conv = nn.Conv2d(channels, channels, 5, stride, 2, groups=groups).requires_grad_(False)
    inputs = [torch.rand(20, channels, 11, 11) for _ in range(2)]
    small = cut(conv, (3, 3), inputs).requires_grad_(False)
    assert (small.kernel_size, small.stride, small.padding) == ((3, 3), (stride, stride), (1, 1))

    def error(candidate: nn.Conv2d) -> float:
        return sum(float((candidate(x) - conv(x)).square().sum()) for x in inputs)

    best = error(small)
    for which in ("weight", "bias"):
        for _ in range(4):  # every direction leads up
            other = copy.deepcopy(small)
            parameter = getattr(other, which)
            parameter += 1e-2 * torch.randn_like(parameter)
            assert error(other) > best
    cropped = copy.deepcopy(small)
    cropped.weight.data, cropped.bias.data = conv.weight[:, :, 1:-1, 1:-1], conv.bias
    assert best < 0.9 * error(cropped)


def test_cut_is_exact_where_the_outer_taps_see_nothing() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    x = torch.randn(64, 4, 2, 2)
    torch.testing.assert_close(cut(conv, (3, 3), [x])(x), conv(x), atol=1e-4, rtol=1e-4)
    row = nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=4)
    x = torch.randn(64, 4, 1, 2)
    torch.testing.assert_close(cut(row, (1, 3), [x])(x), row(x), atol=1e-4, rtol=1e-4)


def small(act: type[nn.Module] | None = None, kernels: str = "3+3d2") -> nn.Module:
    """Two units of very different weight: what the second does is scaled down."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        SelectiveKernel(8, 8, kernels=kernels, groups=8, min_width=4, act_layer=act),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        SelectiveKernel(8, 8, kernels=kernels, groups=8, min_width=4, act_layer=act),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 24, 24) * torch.linspace(0.2, 3, 40)[:, None, None, None]


@pytest.fixture
def network(lived_in: LivedIn, images: Tensor) -> nn.Module:
    model = lived_in(small()).train()
    with torch.no_grad():
        for _ in range(30):
            model(images)
        # The first unit hardly selects, the second does.
        model[1].gate.expand.weight.mul_(3)
        model[4].gate.expand.weight.mul_(60)
        model[-1].bias.sub_(model.eval()(images).mean(0))  # several classes win
    return model


def fixed_size() -> nn.Module:
    """A network for images of 24x24."""
    return nn.Sequential(SelectiveKernel(3, 3, groups=3, act_layer=None), nn.Flatten(), nn.Linear(3 * 24 * 24, 2))


def costs(network: nn.Module, first: float = 10.0, second: float = 10.0) -> Costs:
    units: dict[str, dict[Outcome, float]] = {
        "1": {"select": first, "merge": first / 2, "cut": 0.0},
        "4": {"select": second, "merge": second / 2, "cut": 0.0},
    }
    return Costs(plain=100.0, units=units)


def test_units_go_in_the_order_of_change_for_what_they_cost(network: nn.Module, images: Tensor) -> None:
    _, report = edge_sk.merge(network, images, keep=1)
    alone = {unit.name: unit.alone["merge"].change for unit in report.units}
    assert 0 < 3 * alone["1"] < alone["4"]
    assert report.steps[-1].outcomes == {"1": "merge", "4": "select"}
    assert report.steps[-1].effect.change == pytest.approx(alone["1"])
    # So cheap that what it changes is not worth it.
    dear = 100 * alone["4"] / alone["1"]
    _, report = edge_sk.merge(network, images, keep=1, costs=costs(network, second=dear))
    assert report.steps[-1].outcomes["4"] != "select"
    assert report.steps[-1].outcomes["1"] == "select"


def test_a_budget_is_met_by_as_few_steps_as_it_takes(network: nn.Module, images: Tensor) -> None:
    table = costs(network)
    ratios = []
    for budget in (1.3, 1.2, 1.12, 1.0):
        model, report = edge_sk.merge(network, images, budget=budget, costs=table)
        last = report.steps[-1]
        assert last.ratio == pytest.approx(table.ratio(last.outcomes))
        assert last.ratio is not None
        assert last.ratio <= budget
        assert all((step.ratio or 0) > budget for step in report.steps[:-1])
        assert [type(model[place]) is nn.Conv2d for place in (1, 4)] == [
            last.outcomes[name] != "select" for name in ("1", "4")
        ]
        ratios.append(last.ratio)
    assert ratios[0] == pytest.approx(1.2)
    assert ratios[-1] == 1.0
    assert (model[1].kernel_size, model[4].kernel_size) == ((3, 3), (3, 3))
    with pytest.raises(InputError, match=r"budget=0.99 cannot be met: the smallest ratio that can is 1\.000"):
        edge_sk.merge(network, images, budget=0.99, costs=table)


def test_a_tolerance_holds_on_the_images(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        labels = network(images).argmax(1)  # every image is right at first
    table = costs(network)
    everything = [report for _, report in path(network, images, labels=labels, costs=table)][-1]
    losses = [-gain[0] for step in everything.steps if (gain := step.effect.gain) is not None]
    assert losses[0] == 0 < max(losses)
    for tolerance in (0, max(losses) / 2, 100):
        model, report = edge_sk.merge(network, images, tolerance=tolerance, labels=labels, costs=table)
        with torch.no_grad():
            right = float((model(images).argmax(1) == labels).double().mean())
        assert 100 * (1 - right) <= tolerance + 1e-6
        assert report.steps[-1].effect.top1 == pytest.approx(100 * right)
        taken = len(report.steps)
        assert report.steps == everything.steps[:taken]
        assert taken == len(losses) or losses[taken] > tolerance


def test_the_report_measures_the_attention(network: nn.Module, images: Tensor) -> None:
    labels = torch.arange(40) % 5
    with record_attention(network) as recorded, torch.no_grad():
        network(images)
        attention = recorded["4"].double()
    _, report = edge_sk.merge(network, images, keep=2, labels=labels)
    (_, unit) = report.units
    assert report.steps[-1].count("select") == 2
    assert unit.attention == pytest.approx(attention.mean((0, 2)).tolist())
    assert unit.spread == pytest.approx(float(attention.std(0, correction=0).mean()))
    effect = unit.alone["merge"]
    assert unit.class_spread is not None
    assert effect.gain is not None
    assert 0 < unit.class_spread < unit.spread
    assert effect.gain[1] < effect.gain[0] < effect.gain[2]
    assert "2 selecting, 0 merged" in str(report)
    assert report.to_dict()["units"][1]["alone"]["merge"]["change"] == effect.change


def test_statistics_follow_what_merging_changes(network: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(network.state_dict())
    model, _ = edge_sk.merge(network, images, keep=0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for which, net in (("before", network), ("after", model)):
        for place in (2, 5):
            net[place].register_forward_pre_hook(
                lambda _, args, key=f"{which}{place}": seen.update(
                    {key: torch.var_mean(args[0], (0, 2, 3), correction=0)}
                )
            )
        with torch.no_grad():
            net(images)
    for place in (2, 5):
        moved = model[place].running_mean - network[place].running_mean
        torch.testing.assert_close(moved, seen[f"after{place}"][1] - seen[f"before{place}"][1], atol=1e-5, rtol=1e-4)
        eps = network[place].eps
        grown = (model[place].running_var + eps) / (network[place].running_var + eps)
        expected = (seen[f"after{place}"][0] + eps) / (seen[f"before{place}"][0] + eps)
        torch.testing.assert_close(grown, expected, atol=1e-5, rtol=1e-4)
        assert moved.abs().max() > 1e-6


def test_equal_extents_merge_into_the_hosts_kernel(lived_in: LivedIn, images: Tensor) -> None:
    model = lived_in(small(kernels="3+3"))
    table = Costs(plain=100.0, units={name: {"select": 9.0, "merge": 0.0} for name in ("1", "4")})
    result, report = edge_sk.merge(model, images, budget=1.0, costs=table)
    assert report.steps[-1].ratio == 1.0
    assert [result[place].kernel_size for place in (1, 4)] == [(3, 3), (3, 3)]


@pytest.mark.parametrize(
    "name",
    [
        "sk_shufflenetv2_0.5",
        "sk_mobilenetv2_0.5@kernels=3+5+3d2,sk_units=all",  # three branches, stride 2
        "torchvision:shufflenet_v2_x0_5@kernels=auto,act=relu",
        "timm:mobilenetv3_small_050@kernels=auto",
        "timm:resnext26ts@kernels=auto",  # groups of several channels
    ],
)
def test_networks_of_all_kinds_lose_nothing_where_attention_does_not_move(name: str, lived_in: LivedIn) -> None:
    model = lived_in(edge_sk.create_model(name, num_classes=7)).double().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for unit in gated_units(model).values():
            assert unit.gate is not None
            unit.gate.expand.weight.zero_()  # every branch has the same weight, whatever the image
        expected, others = model(images), model(images.flip(3))
    model.train()
    result, report = edge_sk.merge(model, images, keep=0)
    assert all(module.training for module in result.modules())
    assert {*report.steps[-1].outcomes.values()} == {"merge"}
    with torch.no_grad():
        error = (result.eval()(images) - expected).abs().max()
    assert error < 1e-6 * (expected - others).abs().max()  # of what the images make different


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": None}, "stops at one of keep=, budget= and tolerance=: give one of them"),
        ({"budget": 1.1}, "stops at one of"),
        ({"keep": -1}, r"merge: keep: .* greater than or equal to 0 \(got -1\)"),
        ({"keep": None, "budget": 1.1}, "give costs="),
        (
            {"keep": None, "budget": float("nan"), "costs": costs(nn.Identity())},
            r"merge: budget: .* finite number \(got nan\)",
        ),
        ({"keep": None, "tolerance": 0.3}, "give labels="),
        ({"keep": None, "tolerance": "three", "labels": torch.zeros(40)}, "merge: tolerance: .* valid number"),
        ({"costs": Costs(plain=1.0, units={})}, "costs has no unit 1: it was measured on another network"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels= must be one class per image"),
        ({"images": torch.zeros(3, 24, 24)}, r"images must be a batch .* got \(3, 24, 24\), torch.float32"),
        ({"images": torch.zeros(2, 5, 24, 24)}, "does not run on an input of 2x5x24x24"),
        ({"model": fixed_size(), "images": torch.zeros(2, 3, 16, 16)}, "does not run on an input of 2x3x16x16"),
        ({"images": torch.zeros(0, 3, 24, 24)}, r"got \(0, 3, 24, 24\)"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 1))}, "no selective kernels that select"),
        ({"model": "net"}, "takes a Python module"),
        ({"model": SelectiveKernel(3, 3, groups=3)}, "the network is one selective kernel"),
    ],
)
def test_bad_input(change: dict, message: str, network: nn.Module, images: Tensor) -> None:
    arguments = {"model": network, "images": images, "keep": 1} | change
    with pytest.raises(InputError, match=message):
        edge_sk.merge(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plain": 0.0, "units": {}}, r"costs: plain: .* greater than 0 \(got 0.0\)"),
        ({"plain": 1.0, "units": {"1": {"select": 1.0}}}, "costs of 1 are of .*: give merge too"),
        ({"plain": 1.0, "units": {"1": {"select": 1.0, "merge": float("inf")}}}, "costs: units.1.merge: .* finite"),
        ({"plain": 1.0, "units": {"1": {"pick": 1.0}}}, "costs: units.1.pick"),
        ("nowhere.json", "no costs at nowhere.json"),
        (3.0, "costs=3.0 is neither"),
    ],
)
def test_costs_are_numbers(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_costs(given, ["1"], "select", "merge")


@settings(max_examples=60, deadline=None)
@given(mutated({"plain": 10.0, "units": {"1": {"select": 1.0, "merge": 0.5, "cut": 0.0}}, "where": "here"}))
def test_a_damaged_table_is_one_line(table: Any) -> None:
    read, _ = outcome(read_costs, table, ["1"], "select", "merge")
    assert read is None or math.isfinite(read.ratio({"1": "merge"}))
