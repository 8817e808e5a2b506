"""A grafted network computes what it computed before, and every part of it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edge_sk
from edge_sk import Kernel, running
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
    grafted, _ = edge_sk.graft(model, kernels="3+5", input_size=16)
    gate = units(grafted)[0].gate
    assert gate is not None
    nn.init.normal_(gate.expand.weight, std=30)
    seen: list[Tensor] = []
    gate.register_forward_hook(lambda module, args, result: seen.append(result))
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:8]), model(digits[:8]), rtol=1e-5, atol=1e-5)
    assert float(seen[0].amax() - seen[0].amin()) > 0.2  # the gate did choose


@pytest.mark.parametrize("behind", [(nn.BatchNorm2d(8), nn.ReLU()), (nn.BatchNorm2d(8), nn.Hardswish()), (nn.GELU(),)])
@pytest.mark.parametrize("kernels", ["3+5", "3+3d2"])
def test_no_dead_parameter(behind: tuple[nn.Module, ...], kernels: str, digits: Tensor, lived_in: LivedIn) -> None:
    model = lived_in(nn.Sequential(block(*behind), nn.Conv2d(8, 10, 1)))
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


@pytest.mark.parametrize("kernels", ["3+3d2", "3d2+3+5d2", "1+3"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardswish])
def test_silent_branches_train_at_once_in_every_precision(
    kernels: str, act: type[nn.Module], digits: Tensor, lived_in: LivedIn
) -> None:
    model = lived_in(block(nn.BatchNorm2d(8), act()))

    def gradients(dtype: torch.dtype) -> list[float]:
        grafted, _ = edge_sk.graft(model, kernels=kernels, input_size=16)
        grafted.train()
        optimizer = torch.optim.SGD(grafted.parameters(), lr=0.1)
        norms: list[float] = []
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = grafted(digits).float().square().mean()
            loss.backward()
            for branch in units(grafted)[0].branches:
                for parameter in branch.parameters():
                    assert parameter.grad is not None
                    norms.append(float(parameter.grad.norm()))
            optimizer.step()
        return norms

    full = gradients(torch.float32)
    branches = len(kernels.split("+"))
    scales = [full[3 * index + 1] for index in range(branches)]
    assert min(scales) > 0.05 * max(scales)
    assert min(full[3 * branches :]) > 0  # from the second step on the filters too
    slack = 0.02 * max(full)
    for dtype in (torch.bfloat16, torch.float16):
        # Rounding moves them, most behind a batch norm; a branch that float16 cannot see would lose nine tenths.
        for got, expected in zip(gradients(dtype), full, strict=True):
            assert expected / 3 - slack <= got <= 3 * expected + slack


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
    assert "not guaranteed" in str(near)
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


def test_what_follows_stays_in_its_place(lived_in: LivedIn, digits: Tensor) -> None:
    from timm.layers import BatchNormAct2d

    follow = [
        Handmade(),
        Handmade(F.hardswish),
        Handmade(F.silu),
        Handmade(lambda x: x.relu()),
        Handmade(lambda x: x * torch.sigmoid(x)),
        block(nn.BatchNorm2d(8), nn.Identity(), nn.ReLU()),
        block(nn.BatchNorm2d(8), nn.PReLU(8)),
        block(BatchNormAct2d(8, act_layer=nn.SiLU)),
    ]
    for model in follow:
        for kernels in ("5+7", "5+3d2"):
            grafted, report = edge_sk.graft(lived_in(model), kernels=kernels, input_size=32)
            assert report.exact
            assert all(
                [name for name, _ in branch.named_children()] == ["conv", "bn"]
                for u in units(grafted)
                for branch in u.branches
            )
            with torch.no_grad():
                torch.testing.assert_close(grafted(digits[:2]), model(digits[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "relu6", "hard_swish"])
@pytest.mark.parametrize("select", [True, False])
def test_activation_in_branches_trains_and_relu_starts_near(
    act: str, select: bool, digits: Tensor, lived_in: LivedIn
) -> None:
    from timm.layers.create_act import get_act_layer

    layer = get_act_layer(act)
    assert layer is not None
    model = lived_in(block(nn.BatchNorm2d(8), layer()))
    grafted, report = edge_sk.graft(model, kernels="3+3d2", select=select, act=act, input_size=16)
    assert not report.exact
    assert "not guaranteed" in str(report)
    assert all(hasattr(branch, "act") for branch in units(grafted)[0].branches)
    if act == "relu":  # the host's activation stays behind the unit, and only ReLU is the same when applied twice
        with torch.no_grad():
            assert running.difference([model(digits[:8])], [grafted(digits[:8])]) < 1e-4
    moved: set[str] = set()
    optimizer = torch.optim.SGD(grafted.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        grafted(digits).square().mean().backward()
        moved |= {name for name, p in grafted.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert moved == {name for name, _ in grafted.named_parameters()}


def test_silent_branches_survive_half_precision() -> None:
    model = block().half().eval()
    unit = units(edge_sk.graft(model, kernels="3+3d2", act="relu", input_size=16)[0])[0]
    scale = unit.branches[1].get_submodule("bn").weight
    assert isinstance(scale, Tensor)
    assert float(scale.detach().abs().min()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silent_filters_without_norm_train_at_once(dtype: torch.dtype, digits: Tensor, lived_in: LivedIn) -> None:
    grafted, _ = edge_sk.graft(lived_in(block(nn.GELU())), input_size=16)
    own, silent = (branch.get_submodule("conv") for branch in units(grafted)[0].branches)
    assert float(silent.weight.detach().abs().max()) == 0  # type: ignore[union-attr, operator]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = grafted.train()(digits).float().square().mean()
    loss.backward()
    for name in ("weight", "bias"):
        gradients = [float(getattr(conv, name).grad.norm()) for conv in (own, silent)]
        assert gradients[1] > 0.2 * gradients[0] > 0
