"""The faster backward pass is exact, and steps aside where it does not belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edge_sk import SelectiveKernel
from edge_sk.dilated import depthwise_dilated, pays_off, run_branch


@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 1, 2), (3, 2, 2), (3, 1, 3), (3, 3, 3), (5, 1, 2)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (1, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_conv2d_in_value_and_gradients(
    size: int, stride: int, dilation: int, height: int, width: int, layout: torch.memory_format
) -> None:
    x = torch.randn(3, 6, height, width, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(6, 1, size, size, dtype=torch.float64, requires_grad=True)
    margin = dilation * (size // 2)
    expected = nn.functional.conv2d(x, weight, stride=stride, padding=margin, dilation=dilation, groups=6)
    actual = depthwise_dilated(x, weight, stride=stride, dilation=dilation)
    torch.testing.assert_close(actual, expected)
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, (x, weight), gradient),
        torch.autograd.grad(expected, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_gradients() -> None:
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return depthwise_dilated(x, weight, stride=1, dilation=2)

    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


def test_it_is_used_only_where_it_pays() -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    plain, dilated = (branch.get_submodule("conv") for branch in unit.branches)
    x = torch.randn(2, 16, 8, 8)
    assert pays_off(dilated, x)
    assert not pays_off(plain, x)
    assert not pays_off(SelectiveKernel(16, 16, groups=4).branches[1].get_submodule("conv"), x)
    with torch.no_grad():
        assert not pays_off(dilated, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays_off(dilated, x)
    assert not pays_off(dilated, x.double())


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding_mode": "reflect"}, {"dilation": (2, 1), "padding": (2, 1)}]
)
def test_it_steps_aside_for_convolutions_of_another_kind(options: dict[str, Any]) -> None:
    conv = nn.Conv2d(16, 16, 3, **{"padding": 2, "dilation": 2, "groups": 16, "bias": False} | options)
    assert not pays_off(conv, torch.randn(2, 16, 8, 8))


def test_a_branch_with_a_bias_has_the_same_gradients() -> None:
    branch = SelectiveKernel(16, 16, groups=16, act_layer=None, norm=False).branches[1]
    nn.init.normal_(branch.get_submodule("conv").bias)  # type: ignore[arg-type]
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    assert pays_off(branch.get_submodule("conv"), x)
    results = [run(x) for run in (lambda x: run_branch(branch, x), branch)]
    torch.testing.assert_close(*results)
    inputs = (x, *branch.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(u.square().sum(), inputs) for u in results), rtol=1e-4, atol=1e-4)


def test_gradients_of_each_image_through_torch_func() -> None:
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    weight = torch.randn(4, 1, 3, 3, dtype=torch.float64)

    def loss(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return depthwise_dilated(image[None], weight, stride=1, dilation=2).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    expected = [torch.func.grad(loss)(weight, image) for image in x]
    torch.testing.assert_close(each, torch.stack(expected))
    weight.requires_grad_()
    reference = nn.functional.conv2d(x[:1], weight, padding=2, dilation=2, groups=4).square().sum()
    torch.testing.assert_close(expected[0], torch.autograd.grad(reference, weight)[0])


@pytest.mark.parametrize("path", ["branches.1", "branches.1.conv"])
def test_hooks_are_called(path: str) -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    calls: list[str] = []
    unit.get_submodule(path).register_forward_hook(lambda *_: calls.append(path))
    unit(torch.randn(2, 16, 8, 8))
    assert calls == [path]


class Halve(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


class Doubled(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def fourth(branch: nn.Sequential) -> nn.Module:
    branch.append(Halve())
    return branch


def no_norm(branch: nn.Sequential) -> nn.Module:
    del branch[1]
    return branch


def same_activation_twice(branch: nn.Sequential) -> nn.Module:
    return branch.append(branch[2]).append(Halve()).append(branch[2])


@pytest.mark.parametrize(
    "change",
    [
        fourth,
        no_norm,
        same_activation_twice,
        lambda branch: nn.Sequential(*branch, Halve()),
        lambda branch: nn.Sequential(Halve(), *branch),
        lambda branch: Doubled(*branch),
        lambda branch: branch[0],
        lambda branch: nn.Sequential(),
    ],
)
def test_a_branch_runs_whatever_it_holds(change: Callable[[nn.Sequential], nn.Module]) -> None:
    unit = SelectiveKernel(16, 16, groups=16, act_layer=nn.Hardswish)
    branch = unit.branches[1]
    assert isinstance(branch, nn.Sequential)
    unit.branches[1] = change(branch)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(run_branch(unit.branches[1], x), unit.branches[1](x))
    unit(x).sum().backward()


def test_invisible_in_state_dict_and_export() -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    assert {"branches.1.conv.weight"} == {name for name in unit.state_dict() if name.startswith("branches.1.conv")}
    x = torch.randn(2, 16, 8, 8)
    convolutions = [
        node.target for node in torch.export.export(unit, (x,)).graph.nodes if "aten.conv" in str(node.target)
    ]
    assert len(convolutions) == 4
    assert set(convolutions) == {torch.ops.aten.conv2d.default}
    y = unit(x)
    assert "DilatedDepthwise" in names_of_graph(y)
    graph = torch.fx.symbolic_trace(unit)
    assert "branches_1_conv" in {node.name for node in graph.graph.nodes}


def names_of_graph(y: torch.Tensor) -> str:
    names, queue = [], [y.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None:
            names.append(type(node).__name__)
            queue += [following for following, _ in node.next_functions]
    return " ".join(names)
