"""A grafted network computes what it computed before, and every part of it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edge_sk
from edge_sk import Kernel, grafting, running
from edge_sk.grafting import preserve
from tests.grafting.networks import Handmade, LivedIn, answering, block, units


def create(name: str) -> nn.Module:
    if name == "handmade":
        return Handmade()
    return edge_sk.create_model(name, num_classes=10)


NETWORKS = {
    "torchvision:mobilenet_v3_large": 15,
    "timm:mobilenetv4_conv_small": 15,
    "timm:efficientnet_b0": 16,
    "timm:resnext50_32x4d": 16,
    "torchvision:shufflenet_v2_x0_5": 19,
    "handmade": 2,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_keeps_the_output_on_real_images(name: str, digits: Tensor, lived_in: LivedIn) -> None:
    # In float64, where no network amplifies rounding far enough to hide an error behind.
    digits = digits.double()
    model = answering(lived_in(create(name).double()), torch.cat([digits[:8], torch.randn_like(digits[:8])]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grafted, report = edge_sk.graft(model, images=digits[:2])
    assert len(report.replaced) == len(units(grafted)) == NETWORKS[name]
    assert not report.left
    assert report.found_by == "dataflow"
    with torch.no_grad():
        expected, got = model(digits[:8]), grafted(digits[:8])
    # A network that is constant would pass any comparison.
    assert (expected[0] - expected[1]).abs().max() > 0.05 * expected.abs().max()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert max(report.difference, report.difference_real) < 1e-9
    assert all(max(site.difference, site.difference_real) < 1e-12 and site.exact for site in report.replaced)
    assert report.params == (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in grafted.parameters()))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.PReLU, nn.Identity, nn.GELU])
@pytest.mark.parametrize("kernels", ["3+3d2", "3+5", "3+3d2+5", "5+7", "3d2+7"])
@pytest.mark.parametrize("select", [True, False])
def test_exact_with_any_branches_one_of_which_holds(
    act: type[nn.Module], kernels: str, select: bool, digits: Tensor, lived_in: LivedIn
) -> None:
    model = lived_in(block(nn.BatchNorm2d(8), act()))
    grafted, report = edge_sk.graft(model, kernels=kernels, select=select, input_size=16)
    assert report.exact
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:8]), model(digits[:8]), rtol=1e-5, atol=1e-5)
        # Batch statistics too: training starts where the network was.
        torch.testing.assert_close(grafted.train()(digits[:8]), model.train()(digits[:8]), rtol=1e-4, atol=1e-4)


def test_attention_does_not_matter_to_dense_branches(digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(block())
    grafted, _ = edge_sk.graft(model, input_size=16)
    gate = units(grafted)[0].gate
    assert gate is not None
    nn.init.normal_(gate.expand.weight, std=30)
    seen: list[Tensor] = []
    gate.register_forward_hook(lambda module, args, result: seen.append(result))
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:8]), model(digits[:8]), rtol=1e-5, atol=1e-5)
    assert float(seen[0].amax() - seen[0].amin()) > 0.2  # the gate did choose


@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardswish, nn.ReLU6])
@pytest.mark.parametrize("kernels", ["3+5", "3+3d2"])
def test_no_dead_parameter(act: type[nn.Module], kernels: str, digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(nn.Sequential(block(nn.BatchNorm2d(8), act()), nn.Conv2d(8, 10, 1)))
    grafted, _ = edge_sk.graft(model, kernels=kernels, input_size=16)
    grafted.train()
    unit = units(grafted)[0]
    start = copy.deepcopy(unit.state_dict())
    optimizer = torch.optim.SGD(grafted.parameters(), lr=0.1)
    labels = torch.arange(64) % 10
    moved: set[str] = set()
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(grafted(digits).mean((2, 3)), labels).backward()
        for name, parameter in unit.named_parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.grad.abs().max() > 0:
                moved.add(name)
        optimizer.step()
    assert moved == {name for name, _ in unit.named_parameters()}
    first, second = (branch(digits.mean(1, keepdim=True).expand(-1, 8, -1, -1)) for branch in unit.branches)
    assert (first - second).abs().max() > 1e-3
    gate = "gate.expand.weight"
    assert (unit.state_dict()[gate] - start[gate]).abs().max() > 1e-7


def test_whispering_branch_gets_a_full_gradient_at_once(digits: Tensor, lived_in: LivedIn) -> None:
    grafted, _ = edge_sk.graft(lived_in(block()), kernels="3+3d2", input_size=16)
    unit = units(grafted)[0]
    grafted(digits).square().mean().backward()
    holder, whisper = (branch.get_submodule("bn").weight.grad for branch in unit.branches)
    assert isinstance(holder, Tensor)
    assert isinstance(whisper, Tensor)
    assert whisper.abs().mean() > 0.05 * holder.abs().mean()


@pytest.mark.parametrize("groups", [(4, 2), (4, 1), (2, 2)])
def test_branches_of_fewer_groups_hold_the_filter(groups: tuple[int, int], digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(block(groups=groups[0]))
    grafted, report = edge_sk.graft(model, kernels=[Kernel(3), Kernel(5, groups=groups[1])], input_size=16)
    assert report.exact
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:4]), model(digits[:4]), rtol=1e-5, atol=1e-5)


def test_says_when_no_branch_holds_the_filter(lived_in: LivedIn) -> None:
    model = lived_in(block(kernel_size=5, padding=2))
    _, near = edge_sk.graft(model, kernels="3+3d2", input_size=16)
    torch.manual_seed(0)
    _, fresh = edge_sk.graft(model, kernels="3+3d2", init="random", input_size=16)
    assert not near.exact
    assert "not kept" in str(near)
    assert near.difference is not None
    assert fresh.difference is not None
    assert 1e-4 < near.difference < fresh.difference


@pytest.mark.parametrize(
    "conv", [{"bias": True}, {"bias": False}, {"padding": "same"}, {"stride": 2}, {"kernel_size": 7, "padding": 3}]
)
@pytest.mark.parametrize("affine", [True, False])
def test_biases_strides_paddings(conv: dict[str, Any], affine: bool, digits: Tensor) -> None:
    norm = nn.BatchNorm2d(8, affine=affine, eps=1e-3, momentum=0.03)
    assert norm.running_mean is not None
    nn.init.normal_(norm.running_mean)
    model = block(norm, nn.ReLU(), **conv).eval()
    grafted, _ = edge_sk.graft(model, input_size=16)
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:4]), model(digits[:4]), rtol=1e-5, atol=1e-5)
    new = units(grafted)[0].branches[0].get_submodule("bn")
    assert isinstance(new, nn.BatchNorm2d)
    assert (new.eps, new.momentum) == (1e-3, 0.03)


def test_activation_placement(lived_in: LivedIn, digits: Tensor) -> None:
    def placed(model: nn.Module, **options: Any) -> list[str]:
        grafted, report = edge_sk.graft(lived_in(model), input_size=32, **options)
        with torch.no_grad():
            torch.testing.assert_close(grafted(digits[:2]), model(digits[:2]), rtol=1e-5, atol=1e-5)
        return [site.activation for site in report.replaced]

    functional = ["relu in branches and after", "Hardswish in branches"]
    assert sorted(placed(Handmade())) == sorted(functional)
    assert "hardswish after selection" in placed(Handmade(F.hardswish))
    assert "silu after selection" in placed(Handmade(F.silu))
    assert "relu in branches and after" in placed(Handmade(lambda x: x.relu()))
    assert "none" in placed(Handmade(lambda x: x * torch.sigmoid(x)))
    assert placed(block(nn.BatchNorm2d(8), nn.Identity(), nn.ReLU())) == ["ReLU in branches"]
    assert placed(block(nn.BatchNorm2d(8), nn.SiLU()), kernels="3+3d2") == ["SiLU after selection"]


def test_norm_with_activation_inside(lived_in: LivedIn, digits: Tensor) -> None:
    from timm.layers import BatchNormAct2d

    model = lived_in(block(BatchNormAct2d(8, act_layer=nn.SiLU)))
    for kernels, where in (("3+5", "SiLU in branches"), ("3+3d2", "SiLU after selection")):
        grafted, report = edge_sk.graft(model, kernels=kernels, input_size=16)
        assert [site.activation for site in report.replaced] == [where]
        with torch.no_grad():
            torch.testing.assert_close(grafted(digits[:2]), model(digits[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", [nn.Hardswish, nn.ReLU6, nn.SiLU])
@pytest.mark.parametrize(
    ("kernels", "select", "bound"),
    [
        ("3+3d2", True, 0.011),
        ("3d2+3+5", True, 0.011),
        ("3+5", True, 1e-6),
        ("3+5", False, 1e-6),
        ("3+3d2", False, 1e-6),
    ],
)
def test_activation_in_branches_that_does_not_scale(
    act: type[nn.Module], kernels: str, select: bool, bound: float, digits: Tensor, lived_in: LivedIn
) -> None:
    model = lived_in(block(nn.BatchNorm2d(8), act()))
    norm = model.get_submodule("2")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data.mul_(12)  # reaches 6, where ReLU6 stops
    grafted = copy.deepcopy(model)
    [(site, unit)] = grafting.insert(grafted, kernels=kernels, select=select)
    preserve.start(unit, site)
    grafted.eval()
    with torch.no_grad():
        expected = model(digits[:8])
        assert expected.max() > 4
        assert running.difference([expected], [grafted(digits[:8])]) < bound
        # In training too: nothing of the batch reaches the gate yet.
        assert running.difference([model.train()(digits[:8])], [grafted.train()(digits[:8])]) < max(bound, 1e-4)
    moved: set[str] = set()
    optimizer = torch.optim.SGD(grafted.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        grafted(digits).square().mean().backward()
        moved |= {name for name, p in unit.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert moved == {name for name, _ in unit.named_parameters()}


def test_whisper_survives_half_precision() -> None:
    assert preserve.WHISPER < 1e-5  # invisible to the float32 target
    model = block().half().eval()
    unit = units(edge_sk.graft(model, kernels="3+3d2", input_size=16)[0])[0]
    scale = unit.branches[1].get_submodule("bn").weight
    assert isinstance(scale, Tensor)
    assert float(scale.detach().abs().min()) > 0
