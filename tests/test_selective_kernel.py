"""The unit: properties of the maths, equality with timm's, and every way torch can run it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.layers import SelectiveKernel as TimmSelectiveKernel
from torch import Tensor, nn

from edge_sk import InputError, Kernel, SelectiveKernel
from edge_sk.selective_kernel import parse_kernels

LivedIn = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize(("channels", "groups", "stride"), [(64, 32, 1), (64, 64, 2), (48, 1, 1)])
@pytest.mark.parametrize("train", [False, True])
def test_equals_timm_with_copied_weights(
    lived_in: LivedIn, channels: int, groups: int, stride: int, train: bool
) -> None:
    theirs = TimmSelectiveKernel(
        channels, channels, stride=stride, groups=groups, rd_channels=32, split_input=False, keep_3x3=True
    )
    lived_in(theirs)
    ours = SelectiveKernel(channels, channels, stride=stride, groups=groups)
    names = {
        "paths": "branches",
        "attn.fc_reduce": "gate.reduce",
        "attn.bn": "gate.bn",
        "attn.fc_select": "gate.expand",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    ours.load_state_dict(state)
    ours.double().train(train)
    theirs.double().train(train)
    x = torch.randn(4, channels, 15, 17, dtype=torch.float64)
    y_ours, y_theirs = ours(x), theirs(x)
    torch.testing.assert_close(y_ours, y_theirs)
    gradient = torch.randn_like(y_ours)
    y_ours.backward(gradient)
    y_theirs.backward(gradient)
    torch.testing.assert_close(
        ours.branches[1].get_submodule("conv").weight.grad,
        theirs.paths[1].get_submodule("conv").weight.grad,
    )


def test_attention_sums_to_one_and_mixes_the_branches(lived_in: LivedIn) -> None:
    unit = SelectiveKernel(32, 32, groups=32, kernels="3+3d2+5")
    lived_in(unit)
    nn.init.normal_(unit.gate.expand.weight)
    seen: list[Tensor] = []
    unit.gate.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(2, 32, 12, 12)
    y = unit(x)
    (attention,) = seen
    assert attention.shape == (2, 3, 32, 1, 1)
    assert attention.std() > 0.05
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 32, 1, 1))
    stacked = torch.stack([branch(x) for branch in unit.branches], dim=1)
    torch.testing.assert_close(y, (attention * stacked).sum(1), rtol=1e-5, atol=1e-5)


def test_a_large_logit_selects_one_branch(lived_in: LivedIn) -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    lived_in(unit)
    with torch.no_grad():
        unit.gate.bn.weight.zero_()
        unit.gate.bn.bias.fill_(1.0)  # z = 1 whatever the input
        unit.gate.expand.weight.zero_()
        unit.gate.expand.weight[16:] = 10.0
    x = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(unit(x), unit.branches[1](x), rtol=1e-5, atol=1e-6)


def test_equal_branches_make_the_attention_irrelevant(lived_in: LivedIn) -> None:
    unit = SelectiveKernel(16, 16, groups=16, kernels="3+3")
    lived_in(unit)
    nn.init.normal_(unit.gate.expand.weight, std=3.0)
    unit.branches[1].load_state_dict(unit.branches[0].state_dict())
    x = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(unit(x), unit.branches[0](x), rtol=1e-5, atol=1e-5)


def test_without_selection_the_branches_are_summed(lived_in: LivedIn) -> None:
    unit = SelectiveKernel(16, 16, groups=4, select=False)
    lived_in(unit)
    assert unit.gate is None
    x = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(unit(x), unit.branches[0](x) + unit.branches[1](x))
    single = SelectiveKernel(16, 16, groups=4, kernels="3d2", select=False)
    torch.testing.assert_close(single.eval()(x), single.branches[0](x))


def test_dilation_gives_the_extent_of_a_larger_kernel() -> None:
    unit = SelectiveKernel(8, 8, groups=8, select=False, kernels="3d2")
    x = torch.zeros(1, 8, 11, 11)
    x[0, :, 5, 5] = 1.0
    conv = unit.branches[0].get_submodule("conv")
    touched = conv(x).detach().abs().sum((0, 1)).nonzero()
    assert touched.min() == 3
    assert touched.max() == 7
    assert len(touched) == 9


@pytest.mark.parametrize(("size", "stride", "expected"), [(7, 1, 7), (7, 2, 4), (8, 2, 4), (1, 1, 1), (33, 2, 17)])
@pytest.mark.parametrize("kernels", ["3+3d2", "1+3", "3+3d2+7g8", "1x11+3x1d6"])
@pytest.mark.parametrize("norm", [True, False])
def test_sizes(size: int, stride: int, expected: int, kernels: str, norm: bool) -> None:
    unit = SelectiveKernel(16, 16, groups=16, stride=stride, kernels=kernels, norm=norm)
    assert unit(torch.randn(2, 16, size, size)).shape == (2, 16, expected, expected)


def test_branches_have_their_own_groups() -> None:
    unit = SelectiveKernel(64, 128, groups=32, kernels=(Kernel(3), Kernel(5, groups=64)))
    assert [branch.get_submodule("conv").groups for branch in unit.branches] == [32, 64]
    assert unit(torch.randn(2, 64, 8, 8)).shape == (2, 128, 8, 8)


def test_width_of_the_gate() -> None:
    for channels, options, width in (
        (128, {"reduction": 16, "min_width": 32}, 32),
        (960, {"reduction": 8, "min_width": 1}, 120),
        (1024, {}, 64),
    ):
        unit = SelectiveKernel(channels, channels, **options)
        assert unit.gate.reduce.out_channels == width
    assert unit.gate.reduce.bias is None
    assert unit.gate.expand.bias is None


def test_a_batch_of_one_trains() -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    before = unit.gate.bn.running_mean.clone()
    unit(torch.randn(1, 16, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unit.parameters())
    assert unit.gate.expand.weight.grad.abs().sum() > 0
    assert torch.equal(unit.gate.bn.running_mean, before)  # one image says nothing of the variance
    unit(torch.randn(2, 16, 8, 8))
    assert not torch.equal(unit.gate.bn.running_mean, before)


def test_channels_last_and_autocast_keep_layout_and_dtype() -> None:
    unit = SelectiveKernel(32, 32, groups=32).to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)
    y = unit(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, unit(x.contiguous()).contiguous(), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = unit(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, rtol=0.1, atol=0.1)


def test_torch_export_with_a_dynamic_batch(lived_in: LivedIn) -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    lived_in(unit)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(unit, (torch.randn(2, 16, 9, 9),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 16, 9, 9)
    torch.testing.assert_close(program.module()(x), unit(x), rtol=1e-5, atol=1e-5)


def test_fx_trace_keeps_its_mode_switch() -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    graph = torch.fx.symbolic_trace(unit)
    x = torch.randn(1, 16, 9, 9)
    torch.testing.assert_close(graph.train()(x), copy.deepcopy(unit).train()(x))
    torch.testing.assert_close(graph.eval()(x), unit.eval()(x))


def test_torch_compile_and_torchscript(lived_in: LivedIn) -> None:
    unit = SelectiveKernel(16, 16, groups=16)
    lived_in(unit)
    x = torch.randn(2, 16, 9, 9)
    expected = unit(x)
    compiled = torch.compile(unit, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.warns(FutureWarning, match="torch.jit"):  # timm's users still script
        scripted = torch.jit.script(unit)
    torch.testing.assert_close(scripted(x), expected, rtol=1e-5, atol=1e-5)


def test_kernels_read_and_write() -> None:
    assert parse_kernels("3+3d2+5g64") == (Kernel(3), Kernel(3, dilation=2), Kernel(5, groups=64))
    assert parse_kernels([3, "3d3", Kernel(1)]) == (Kernel(3), Kernel(3, dilation=3), Kernel(1))
    assert parse_kernels(3) == parse_kernels(Kernel(3)) == parse_kernels("3") == (Kernel(3),)
    for text in ("1", "3d2", "5g64", "3d3g4", "1x11", "3x1d6g4"):
        assert str(Kernel.parse(text)) == text
    assert Kernel.parse("3x3d2") == Kernel(3, dilation=2, columns=3) == Kernel(3, 2)
    assert (Kernel(3, dilation=2).extent, Kernel.parse("1x3d6").extents) == (5, (1, 13))
    assert "3+3d2" in repr(SelectiveKernel(32, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kernel(4), "kernel size 4 is even"),
        (lambda: Kernel(0), "kernel size=0 is not a whole number of at least 1"),
        (lambda: Kernel.parse("3*3"), r"kernel '3\*3' is not SIZE"),
        (lambda: Kernel.parse("3d0"), "kernel dilation=0 is not a whole number"),
        (lambda: Kernel(3, columns=2), "kernel size 2 is even"),
        (lambda: SelectiveKernel(32, 32, norm=0), "norm=0 is neither true nor false"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, kernels="3"), "needs at least 2 kernels, got 1"),
        (lambda: SelectiveKernel(32, 32, kernels=(), select=False), "needs at least 2 kernels, got 0"),
        (lambda: SelectiveKernel(24, 24), "groups=32 does not divide in_channels=24"),
        (lambda: SelectiveKernel(32, 32, reduction=0), "reduction=0 is not a whole number"),
        (lambda: SelectiveKernel(32, 32, stride=0), "stride=0 is not a whole number"),
        (lambda: SelectiveKernel(32, 32, stride=(2, 2)), r"stride=\(2, 2\) is not a whole number"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, kernels=3), "needs at least 2 kernels, got 1; one kernel is a plain"),
        (lambda: SelectiveKernel(32, 32, kernels=None), "kernel size=None is not a whole number"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, kernels=True), "kernel size=True is not a whole number"),
        (lambda: SelectiveKernel(32, 32, kernels=[3, 5.0]), "kernel size=5.0 is not a whole number"),  # type: ignore[list-item]
        (lambda: SelectiveKernel(32, 32, kernels=[[3, 5]]), r"kernel size=\[3, 5\] is not a whole number"),  # type: ignore[list-item]
        (lambda: SelectiveKernel(32, 32, groups=0), "groups=0 is not a whole number"),
        (lambda: SelectiveKernel(32, 32, groups=-1), "groups=-1 is not a whole number"),
        (lambda: SelectiveKernel(32, 32, groups=None), "groups=None is not a whole number"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, groups=8.0), "groups=8.0 is not a whole number"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, reduction=True), "reduction=True is not a whole number"),
        (lambda: SelectiveKernel(32, 32, min_width=np.float32(8)), r"min_width=.*8.* is not a whole number"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32.0, 32), "in_channels=32.0 is not a whole number"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 0), "out_channels=0 is not a whole number"),
        (lambda: SelectiveKernel(32, 32, select="no"), "select='no' is neither true nor false"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, act_layer="rellu"), "act_layer='rellu' is neither .* timm's name"),
        (lambda: SelectiveKernel(32, 32, act_layer=""), "act_layer='' is neither"),
        (lambda: SelectiveKernel(32, 32, act_layer=nn.ReLU()), r"act_layer=ReLU\(\) is neither"),
        (lambda: SelectiveKernel(32, 32, act_layer=torch.relu), "act_layer=<.*relu.*> is neither"),
        (lambda: SelectiveKernel(32, 32, act_layer=int), "act_layer=<class 'int'> is neither"),  # type: ignore[arg-type]
        (lambda: SelectiveKernel(32, 32, act_layer=nn.Linear), "act_layer=<class .*Linear'> is neither"),
        (lambda: Kernel(True), "kernel size=True is not a whole number"),
        (lambda: Kernel(None), "kernel size=None is not a whole number"),  # type: ignore[arg-type]
        (lambda: Kernel(3, dilation=2.0), "kernel dilation=2.0 is not a whole number"),  # type: ignore[arg-type]
        (lambda: Kernel(3, groups=0), "kernel groups=0 is not a whole number"),
        (lambda: Kernel(3, groups=False), "kernel groups=False is not a whole number"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_numpys_integers_are_integers() -> None:
    eight, three, two, one = map(np.int64, (8, 3, 2, 1))
    kernels = [Kernel(three, dilation=two, groups=two), three]
    unit = SelectiveKernel(eight, eight, kernels=kernels, stride=two, groups=eight, reduction=two, min_width=one)  # type: ignore[arg-type]
    assert repr(unit) == repr(SelectiveKernel(8, 8, kernels="3d2g2+3", stride=2, groups=8, reduction=2, min_width=1))
    assert type(unit.kernels[0].size) is type(unit.stride) is int
    assert unit(torch.randn(2, 8, 6, 6)).shape == (2, 8, 3, 3)
    assert len(SelectiveKernel(8, 8, kernels=5, groups=8, select=False).branches) == 1


@pytest.mark.parametrize(
    ("name", "layer"), [("relu", nn.ReLU), ("hard_swish", nn.Hardswish), ("identity", nn.Identity)]
)
def test_activations_by_timms_names(name: str, layer: type[nn.Module]) -> None:
    unit = SelectiveKernel(8, 8, groups=8, act_layer=name)
    assert unit.gate is not None
    assert [type(act) for act in (unit.gate.act, *(branch.get_submodule("act") for branch in unit.branches))] == [
        layer
    ] * 3
    assert repr(unit) == repr(SelectiveKernel(8, 8, groups=8, act_layer=layer))


@pytest.mark.parametrize("kernels", ["3+3d2", "1x5+5x1+3"])
@pytest.mark.parametrize("act", [None, nn.Hardswish])
def test_without_norms_nothing_is_folded_into_the_branches(
    kernels: str, act: type[nn.Module] | None, lived_in: LivedIn
) -> None:
    unit = lived_in(SelectiveKernel(16, 32, groups=16, kernels=kernels, act_layer=act, norm=False)).double()
    assert isinstance(unit, SelectiveKernel)
    assert [type(part) for part in unit.branches.modules()].count(nn.BatchNorm2d) == 0
    for branch in unit.branches:
        nn.init.normal_(branch.get_submodule("conv").bias)  # type: ignore[arg-type]
    deployed = unit.fuse()
    x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), unit(x))
    for branch, conv in zip(unit.branches, deployed.convs, strict=True):  # type: ignore[arg-type]
        for ours, theirs in zip(branch.get_submodule("conv").parameters(), conv.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours is not theirs
