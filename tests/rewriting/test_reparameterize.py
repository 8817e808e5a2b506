"""The deploy form computes what the trained network computes, step by step and as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import timm.layers
import torch
from timm.models.byobnet import MobileOneBlock
from torch import Tensor, nn

import edge_sk
from edge_sk.rewriting import STEPS, batchnorm, normalize, pooling, scalars, shuffle, slices
from edge_sk.rewriting.graph import finish, trace
from edge_sk.selective_kernel import DeploySelectiveKernel

Rewrite = Callable[[nn.Module], nn.Module]


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def _operators(model: nn.Module, image: Tensor) -> list[str]:
    """Names of the ATen operators that an export sees."""
    graph = torch.export.export(model, (image,)).run_decompositions({}).graph
    return [
        str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function" and "." in str(node.target)
    ]


class _Splits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.chunk(3, dim=1)
        d, e = x.split([2, 6], dim=1)
        f, g = torch.split(x, 4, -3)
        return torch.cat((c, a, b, e, d, g, f), 1)


class _Pools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + x.mean([-1, -2]) + torch.mean(x, (-2, -1), keepdim=True).flatten(1)


class _Averages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class _Scalars(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = (x + 3) * 2
        y += 1
        return (1 - y).reshape(n, c // 2 * 2, h, w)


class _Reductions(nn.Module):
    """Four-dimensional feature maps, with the pixel axes last."""

    def forward(self, x: Tensor) -> Tensor:
        space = x.amax((2, 3), keepdim=True) + x.amax(dim=(-1, -2), keepdim=True)
        channels = x.amax(dim=1, keepdim=True) + torch.mean(x, 1, keepdim=True)
        one = channels.mean(1, keepdim=True) + x.amax((2, 3), keepdim=True).amax((2, 3), keepdim=True)
        return space + channels + one + x.amax(1)[:, None]  # the last keeps no axis and stays


class _HardSigmoids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Hardsigmoid()
        self.timms = timm.layers.HardSigmoid()  # traced into: relu6(x + 3) / 6, in floats

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) + nn.functional.hardsigmoid(x) + self.timms(x)


class _Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.drop, self.nothing = nn.Dropout(0.5), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.nothing(self.conv(x))))


class _Input(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = normalize.Normalize([0.1 * c for c in range(8)], [0.2 + 0.1 * c for c in range(8)])
        self.conv = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.normalize(x))


@pytest.mark.parametrize(
    ("step", "module", "count", "gone"),
    [
        (slices.use_slices, _Splits(), 3, {"split", "chunk", "split_with_sizes"}),
        (pooling.keep_pooled_dims, _Pools(), 3, set()),
        (pooling.pad_before_average, _Averages(), 1, set()),
        (pooling.pool_instead_of_reducing, _Reductions(), 7, {"mean"}),
        (scalars.use_float_constants, _Scalars(), 4, set()),
        (scalars.expand_hard_sigmoid, _HardSigmoids(), 2, {"hardsigmoid"}),
        (
            batchnorm.fold_batch_norm,
            nn.Sequential(nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)),
            1,
            {"batch_norm"},
        ),
        (batchnorm.remove_identities, _Norms(), 2, {"dropout"}),
        (normalize.fold_input_scale, _Input(), 1, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_step_is_exact(
    step: Callable[..., int],
    module: nn.Module,
    count: int,
    gone: set[str],
    lived_in: Rewrite,
) -> None:
    module = lived_in(module)
    image = torch.randn(2, 8, 9, 9) if not isinstance(module, _Splits) else torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        expected = module(image)
        graph = trace(module, (image,))
        assert step(graph) == count
        finish(graph)
        assert _relative(expected, graph(image)) < 1e-6
    assert not gone & set(_operators(graph, image))


def test_every_step_is_tested_here() -> None:
    tested = {slices.use_slices, pooling.keep_pooled_dims, pooling.pad_before_average, scalars.use_float_constants}
    tested |= {scalars.expand_hard_sigmoid, batchnorm.fold_batch_norm, batchnorm.remove_identities}
    tested |= {normalize.fold_input_scale, shuffle.absorb_shuffles, pooling.pool_instead_of_reducing}
    assert set(STEPS) == tested | {batchnorm.split_norm_act}


def test_int_constants_become_floats() -> None:
    graph = trace(_Scalars(), (torch.randn(2, 8, 9, 9),))
    scalars.use_float_constants(graph)
    numbers = [
        (n.name, a) for n in graph.graph.nodes if n.op == "call_function" for a in n.args if type(a) in (int, float)
    ]
    # Sizes stay whole: "mul_1" is c // 2 * 2.
    assert [(name, type(a)) for name, a in numbers if name in ("add", "mul", "sub", "mul_1", "floordiv")] == [
        ("add", float),
        ("mul", float),
        ("sub", float),
        ("floordiv", int),
        ("mul_1", int),
    ]


@pytest.mark.parametrize("options", ["", "@sk_units=all", "@kernels=3+3d2+5", "@select=false", "@sk_units=main"])
def test_shufflenet_without_shuffles(options: str, digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(edge_sk.create_model(f"sk_shufflenetv2_0.5{options}", num_classes=10))
    form = edge_sk.reparameterize(model)
    with torch.no_grad():
        assert _relative(model(digits[:4]), form(digits[:4])) < 2e-6
    assert form.reparameterized["absorb_shuffles"] == 16  # type: ignore[index]
    seen = set(_operators(form, digits[:1]))
    assert not seen & {"transpose", "permute", "chunk", "split", "split_with_sizes", "batch_norm"}


@pytest.mark.parametrize("name", ["shufflenetv2_0.5", "torchvision:shufflenet_v2_x0_5"])
def test_plain_shufflenet_without_shuffles(name: str, digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(edge_sk.create_model(name, num_classes=10))
    form = edge_sk.reparameterize(model)
    with torch.no_grad():
        assert _relative(model(digits[:4]), form(digits[:4])) < 2e-6
    assert form.reparameterized["absorb_shuffles"] == 16  # type: ignore[index]


def test_shuffle_stays_where_neighbours_cannot_take_it(digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(edge_sk.create_model("se_shufflenetv2_0.5", num_classes=10))
    form = edge_sk.reparameterize(model)
    with torch.no_grad():
        assert _relative(model(digits[:4]), form(digits[:4])) < 2e-6
    assert "absorb_shuffles" not in form.reparameterized  # type: ignore[operator]
    assert not {"chunk", "split", "split_with_sizes"} & set(_operators(form, digits[:1]))


class _TwoReaders(nn.Module):
    """A shuffle whose source something else reads too: its order must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(self.shuffle(x)) + x


def test_shuffle_stays_where_others_read_its_source(digits: Tensor) -> None:
    model = _TwoReaders().eval()
    form = edge_sk.reparameterize(model)
    assert "absorb_shuffles" not in form.reparameterized  # type: ignore[operator]
    torch.testing.assert_close(form(digits[:2]), model(digits[:2]))


class _Stack(nn.Module):
    """ShuffleNetV1's order: grouped convolution, shuffle, depthwise, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 1)
        self.shuffle = nn.ChannelShuffle(3)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.depthwise(self.shuffle(torch.relu(self.first(x))))))


def test_shuffle_passes_a_depthwise_convolution(digits: Tensor) -> None:
    model = _Stack().eval()
    form = edge_sk.reparameterize(model)
    assert form.reparameterized == {"absorb_shuffles": 1}
    torch.testing.assert_close(form(digits[:2]), model(digits[:2]))


def test_wrong_permutation_is_undone(monkeypatch: pytest.MonkeyPatch, digits: Tensor, lived_in: Rewrite) -> None:
    monkeypatch.setattr(shuffle, "_permute_input", lambda module, order: None)
    model = lived_in(edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10))
    form = edge_sk.reparameterize(model)
    assert "the output changes by" in form.reparameterized.undone["absorb_shuffles"]  # type: ignore[union-attr]
    with torch.no_grad():
        assert _relative(model(digits[:4]), form(digits[:4])) < 2e-6


@pytest.mark.parametrize(
    ("kernels", "groups", "select", "stride"),
    [
        ("3+3d2", 8, True, 1),
        ("3+3d2", 4, True, 2),
        ("3+5+3d3", 8, True, 1),
        ("3+3d2+5+7", 2, True, 1),
        ("3+5", 8, False, 1),
    ],
)
@pytest.mark.parametrize("act_layer", [nn.ReLU, nn.Hardswish])
def test_unit(
    kernels: str, groups: int, select: bool, stride: int, act_layer: Callable[..., nn.Module], lived_in: Rewrite
) -> None:
    unit = edge_sk.SelectiveKernel(
        8, 8, kernels=kernels, groups=groups, select=select, stride=stride, act_layer=act_layer
    )
    with torch.no_grad():
        for parameter in unit.gate.parameters() if unit.gate else ():
            parameter.normal_()  # The gate starts undecided; a wrong branch order must show.
    lived_in(unit)
    x = torch.randn(3, 8, 11, 9)
    with torch.no_grad():
        assert _relative(unit(x), unit.fuse()(x)) < 2e-6
    assert not {"batch_norm", "select", "unbind", "stack"} & set(_operators(unit.fuse(), x[:1]))


@pytest.mark.parametrize("size", [8, 200])
def test_unit_of_small_and_large_maps(size: int, lived_in: Rewrite) -> None:
    unit = lived_in(edge_sk.SelectiveKernel(8, 8, groups=8))
    x = torch.randn(2, 8, size, size)
    with torch.no_grad():
        assert _relative(unit(x), unit.fuse()(x)) < 2e-6  # type: ignore[operator]
    pools = _operators(unit.fuse(), x[:1]).count("mean")  # type: ignore[operator]
    assert pools == (1 if size == 8 else 2)


def test_unit_takes_a_permutation(lived_in: Rewrite) -> None:
    form = DeploySelectiveKernel(lived_in(edge_sk.SelectiveKernel(8, 8, kernels="3+3d2+5", groups=8)))  # type: ignore[arg-type]
    x, order = torch.randn(2, 8, 7, 7), [3, 1, 0, 7, 6, 2, 5, 4]
    with torch.no_grad():
        expected = form(x)[:, order]
        form.permute_channels(order)
        assert _relative(expected, form(x[:, order])) < 1e-6


def test_timm_reparameterizes_our_units(digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(edge_sk.create_model("sk_mobilenetv2_0.5", num_classes=10))
    form = timm.utils.reparameterize_model(model)
    assert not any(isinstance(m, edge_sk.SelectiveKernel) for m in form.modules())
    assert any(isinstance(m, DeploySelectiveKernel) for m in form.modules())
    with torch.no_grad():
        assert _relative(model(digits[:2]), form(digits[:2])) < 2e-6


def test_a_grafted_block_is_not_asked_for_its_own_form(digits: Tensor, lived_in: Rewrite) -> None:
    block = MobileOneBlock(16, 16, kernel_size=3, group_size=1, num_conv_branches=2)
    host = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = lived_in(edge_sk.graft(host, input_size=64)[0])
    assert callable(model.get_submodule("1").reparameterize)
    form = edge_sk.reparameterize(model, digits[:2])
    assert sum(isinstance(m, DeploySelectiveKernel) for m in form.modules()) == 2
    with torch.no_grad():
        assert _relative(model(digits[:2]), form(digits[:2])) < 5e-6


NETWORKS = [
    "sk_mobilenetv1_1.0",
    "sk_mobilenetv2_0.5",
    "se_mobilenetv2_0.5",
    "mobilenetv3_small_1.0",
    "sk_mobilenetv3_small_1.0",
    "sk_mobilenetv4_conv_small",
    "sknet26",
    "torchvision:mobilenet_v3_small",
    "timm:mobileone_s0",
    "timm:repvgg_a0",
    "timm:ghostnet_100",
    "timm:test_efficientnet",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(edge_sk.create_model(name, num_classes=10))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form = edge_sk.reparameterize(model.train(), digits[:2])
    with torch.no_grad():
        expected = model.eval()(digits[:3])
        assert _relative(expected, form(digits[:3])) < 5e-6
        form(digits[:1])  # the batch is free
    assert not form.training
    assert not any(parameter.requires_grad for parameter in form.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in form.modules())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, msg=f"{key} of the input changed")


@pytest.mark.slow
@pytest.mark.parametrize("name", edge_sk.list_models())
def test_zoo(name: str, digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(edge_sk.create_model(name, num_classes=10))
    with torch.no_grad():
        assert _relative(model(digits[:2]), edge_sk.reparameterize(model)(digits[:2])) < 5e-6


class _Twice(nn.Module):
    """One convolution in two places, a norm behind one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x)


def test_shared_convolution_is_left_alone(digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(_Twice())
    torch.testing.assert_close(edge_sk.reparameterize(model)(digits[:2]), model(digits[:2]))


class _Branching(nn.Module):
    """Python that depends on the data: fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


def test_children_of_a_module_that_branches(digits: Tensor, lived_in: Rewrite) -> None:
    model = lived_in(_Branching())
    form = edge_sk.reparameterize(model)
    assert form.reparameterized == {"fold_batch_norm": 1}
    assert "control flow" in form.reparameterized.untraced[""]  # type: ignore[union-attr]
    torch.testing.assert_close(form(digits[:2]), model(digits[:2]))


def test_no_weights() -> None:
    with torch.device("meta"):
        model = nn.Conv2d(3, 3, 1)
    with pytest.raises(edge_sk.InputError, match="no weights"):
        edge_sk.reparameterize(model)
