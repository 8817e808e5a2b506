"""Which convolutions are replaced, found by dataflow or by structure, and why the others are skipped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import SplitAttn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import edge_sk
from edge_sk import InputError, grafting
from edge_sk.grafting import finding
from tests.grafting.networks import LivedIn, Reads, block, units


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = block()
        self.decoy = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.sum() > 1e9:
            return x
        # The norm registered behind `decoy` does not read its output.
        return self.norm(x) + self.decoy(x)


def test_falls_back_to_structure_and_says_so(lived_in: LivedIn, digits: Tensor) -> None:
    model = lived_in(Untraceable())
    grafted, report = edge_sk.graft(model, input_size=16)
    assert report.found_by == "module structure"
    assert "TraceError" in str(report)
    assert [(site.name, site.norm) for site in report.replaced] == [("features.1", "features.2"), ("decoy", None)]
    assert not report.left
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:2]), model(digits[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["shufflenetv2_0.5", "mobilenetv2_0.5", "mobilenetv4_conv_small", "resnext26"])
def test_dataflow_and_structure_agree_on_the_zoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = edge_sk.create_model(name).eval()
    by_flow = finding.find(model)[0]
    monkeypatch.setattr(finding, "_follow", lambda *_: (None, None))
    by_structure = finding.find(model)[0]
    assert {site.found_by for site in by_flow} == {"dataflow"}
    assert {site.found_by for site in by_structure} == {"structure"}
    assert [(s.name, s.norm) for s in by_flow] == [(s.name, s.norm) for s in by_structure]


@pytest.mark.parametrize(("how", "reason"), [("twice", "is called at 2 places"), ("weight", "is read directly")])
def test_skips_what_is_used_otherwise(how: str, reason: str, lived_in: LivedIn, digits: Tensor) -> None:
    model = lived_in(Reads(how))
    grafted, report = edge_sk.graft(model, input_size=16)
    assert [site.name for site in report.replaced] == ["site.1"]
    assert [item.name for item in report.left] == ["conv"]
    assert reason in report.left[0].reason
    assert reason in str(report)
    with torch.no_grad():
        torch.testing.assert_close(grafted(digits[:2]), model(digits[:2]), rtol=1e-5, atol=1e-5)


def _hooked() -> nn.Module:
    model = block()
    model[1].register_forward_hook(lambda *_: None)
    return model


def _parametrized() -> nn.Module:
    model = block()
    nn.utils.parametrizations.weight_norm(model[1])
    return model


def _tied() -> nn.Module:
    model = nn.Sequential(block(), block(channels=8)[1:])
    model[1][0].weight = model[0][1].weight
    return model


NOTHING = {
    "hook": (_hooked, "has a hook"),
    "parametrization": (_parametrized, "has a parametrization of weight"),
    "tied": (_tied, "shares its parameters"),
    "even": (lambda: block(kernel_size=4, padding=2), r"kernel is even \(4x4\)"),
    "dilated": (lambda: block(dilation=2, padding=2), r"it is dilated \(2\)"),
    "even columns": (lambda: block(kernel_size=(1, 2), padding=(0, 1)), r"kernel is even \(1x2\)"),
    "two strides": (lambda: block(stride=(1, 2)), "its stride is 1x2"),
    "the whole network": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), "wrap it in nn.Sequential"),
    "unpadded": (lambda: block(padding=0), "not that of a centred kernel"),
    "reflected": (lambda: block(padding_mode="reflect"), "pads with 'reflect'"),
    "dense": (lambda: block(groups=1), "no grouped or depthwise convolution"),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), "no grouped or depthwise"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_graft_is_an_error_with_the_reason(case: str) -> None:
    build, message = NOTHING[case]
    with pytest.raises(InputError, match=message):
        edge_sk.graft(build(), input_size=16)


def test_tensorflow_padding_is_skipped() -> None:
    from timm.layers import Conv2dSame

    with pytest.raises(InputError, match="Conv2dSame"):
        edge_sk.graft(nn.Sequential(Conv2dSame(3, 3, 3, stride=2, groups=3), nn.BatchNorm2d(3)), input_size=16)


class Around(nn.Module):
    """What the functions of a network do with a convolution's output."""

    def __init__(self, then: Callable[[Tensor], Tensor], **conv: Any) -> None:
        super().__init__()
        self.features, self.then = block(nn.Identity(), **conv), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.features(x))


def _hooked_norm() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.register_forward_pre_hook(lambda *_: None)
    return norm


def _last(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)


BEHIND: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: Around(_last),
    "group norm": lambda: block(nn.GroupNorm(2, 8)),
    "activation in place": lambda: block(nn.ReLU(inplace=True)),
    "activation": lambda: Around(F.gelu),
    "1x1 convolution": lambda: block(nn.Conv2d(8, 4, 1)),
    "cat": lambda: Around(lambda x: torch.cat((x, x), 1)),
    "add": lambda: Around(lambda x: x + x.mean()),
    "the output": lambda: block(nn.Identity()),
    "two readers": lambda: Reads("second user"),
    "function": lambda: Reads("no norm"),
    "a norm with a hook": lambda: block(_hooked_norm()),
    "a norm without statistics": lambda: block(nn.BatchNorm2d(8, track_running_stats=False)),
    "a frozen norm": lambda: block(FrozenBatchNorm2d(8)),
    "a norm of another library": lambda: block(type("Norm", (nn.BatchNorm2d,), {})(8)),
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {},
    "without bias": {"bias": False},
    "stride": {"stride": 2, "kernel_size": 5, "padding": 2},
    "row": {"kernel_size": (1, 7), "padding": (0, 3)},
    "column": {"kernel_size": (5, 1), "padding": (2, 0), "stride": 2},
    "grouped": {"groups": 2},
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("kernels", [None, "7+3", "1+7d1", "1x7+7x1+7"])
def test_what_is_no_batch_norm_stays_behind(
    behind: str, kernels: str | None, lived_in: LivedIn, digits: Tensor
) -> None:
    model = lived_in(BEHIND[behind]()).double()
    grafted, report = edge_sk.graft(model, kernels=kernels, input_size=16)
    norms = {site.name: site.norm for site in report.replaced}
    assert not report.left
    assert [name for name in norms if norms[name] is None] == ["conv" if isinstance(model, Reads) else _name(model)]
    assert "bias" in str(report)
    assert report.exact
    _same(grafted, model, digits)
    kept = [name for name, _ in model.named_modules() if name not in norms and name not in norms.values()]
    assert [type(grafted.get_submodule(name)) for name in kept] == [type(model.get_submodule(name)) for name in kept]


@pytest.mark.parametrize("conv", CONVOLUTIONS)
@pytest.mark.parametrize("select", [True, False])
def test_convolutions_of_every_form_start_exactly(conv: str, select: bool, lived_in: LivedIn, digits: Tensor) -> None:
    for behind in (nn.Hardswish(), nn.BatchNorm2d(8)):
        model = lived_in(block(behind, **CONVOLUTIONS[conv])).double()
        grafted, report = edge_sk.graft(model, select=select, input_size=16)
        assert [site.norm for site in report.replaced] == ["2" if isinstance(behind, nn.BatchNorm2d) else None]
        _same(grafted, model, digits)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 8, 4), (4, 12, 2), (8, 4, 4)])
@pytest.mark.parametrize("behind", [nn.BatchNorm2d, lambda channels: nn.GroupNorm(1, channels)])
def test_convolutions_that_change_the_channels(
    inputs: int, outputs: int, groups: int, behind: Callable[[int], nn.Module], lived_in: LivedIn, digits: Tensor
) -> None:
    conv = nn.Conv2d(inputs, outputs, 3, 2, 1, groups=groups)
    model = lived_in(nn.Sequential(nn.Conv2d(3, inputs, 1), conv, behind(outputs), nn.ReLU())).double()
    grafted, report = edge_sk.graft(model, input_size=16)
    kind = "depthwise" if groups == inputs else f"g{groups}"
    assert report.replaced[0].conv == f"3x3/2 {kind} {inputs}->{outputs}"
    _same(grafted, model, digits)
    chosen = edge_sk.graft(
        model, where=getattr(grafting, "depthwise" if groups == inputs else "grouped"), input_size=16
    )
    assert len(chosen[1].replaced) == 1


@torch.no_grad()
def _same(grafted: nn.Module, model: nn.Module, digits: Tensor) -> None:
    x = digits[:4].double()
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-3  # what is constant would pass
    torch.testing.assert_close(grafted(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grafted.train()(x), model.train()(x), rtol=1e-10, atol=1e-10)
    model.eval()


def _name(model: nn.Module) -> str:
    return "features.1" if isinstance(model, Around) else "1"


# Convolutions that timm's modules make, counted over the modules: each is a site, and nothing else is.
COUNTED: dict[str, tuple[int, Callable[[Any, Any], int]]] = {
    "timm:convnext_atto": (12, lambda block, timm: isinstance(block, timm.convnext.ConvNeXtBlock)),
    "timm:edgenext_xx_small": (
        15,
        lambda block, timm: (
            isinstance(block, timm.edgenext.ConvBlock)
            + (len(block.convs) if isinstance(block, timm.edgenext.SplitTransposeBlock) else 0)
        ),
    ),
    "timm:inception_next_tiny": (
        54,
        lambda block, timm: 3 * isinstance(block, timm.inception_next.InceptionDWConv2d),
    ),
    "timm:mixnet_s": (
        43,
        lambda block, timm: (
            len(block.conv_dw)
            if isinstance(getattr(block, "conv_dw", None), nn.ModuleDict)
            else isinstance(getattr(block, "conv_dw", None), nn.Conv2d)
        ),
    ),
    "timm:xception41p": (
        39,
        lambda block, timm: isinstance(
            block, timm.xception_aligned.SeparableConv2d | timm.xception_aligned.PreSeparableConv2d
        ),
    ),
    "timm:starnet_s1": (30, lambda block, timm: 2 * isinstance(block, timm.starnet.Block)),
    "timm:ghostnetv2_100": (69, lambda block, timm: isinstance(block, nn.Conv2d) and block.groups > 1),
    "timm:resnest14d": (4, lambda block, timm: isinstance(block, SplitAttn)),
}


def test_the_guide_counts_the_sites_of_every_task_right() -> None:
    import torchvision

    text = (Path(__file__).resolve().parents[2] / "docs" / "grafting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| [\w ]+ \| (\d+) of (\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for name, found, together in rows:
        if name.endswith("()"):
            model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None)
        else:
            model = edge_sk.create_model(name)
        sites, skipped, _ = finding.find(model.eval())
        assert (len(sites), len(sites) + len(skipped)) == (int(found), int(together)), name


@pytest.mark.parametrize("name", COUNTED)
def test_every_convolution_of_these_families_is_a_site(name: str) -> None:
    import timm.models

    model = edge_sk.create_model(name).eval()
    expected, count = COUNTED[name]
    assert sum(int(count(module, timm.models)) for module in model.modules()) == expected
    sites, skipped, _ = finding.find(model)
    assert (len(sites), skipped) == (expected, [])
    # Exactly those whose output batch normalisation reads take it over: timm registers it as the next module.
    if name in ("timm:convnext_atto", "timm:edgenext_xx_small", "timm:inception_next_tiny", "timm:xception41p"):
        assert all(site.norm is None for site in sites)
    if name in ("timm:ghostnetv2_100", "timm:resnest14d"):
        assert all(site.norm is not None for site in sites)
    if name == "timm:starnet_s1":
        assert {site.name.rpartition(".dwconv")[2]: site.norm is None for site in sites} == {
            ".conv": False,
            "2.conv": True,
        }


def test_grafting_twice(lived_in: LivedIn) -> None:
    grafted, _ = edge_sk.graft(block(), input_size=16)
    with pytest.raises(InputError, match="has 1 selective kernels already, and nothing else"):
        edge_sk.graft(grafted, input_size=16)
    model = lived_in(edge_sk.create_model("shufflenetv2_0.5"))
    once, first = edge_sk.graft(model, where=grafting.stages(2), input_size=64)
    both, second = edge_sk.graft(once, input_size=64)
    assert (len(first.replaced), len(second.replaced), len(units(both))) == (5, 14, 19)


def test_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sk.grafting._graft._macs", lambda *_: None)  # a third of the time, and tested elsewhere
    model = edge_sk.create_model("torchvision:mobilenet_v3_small")

    def chosen(where: Any) -> list[str]:
        _, report = edge_sk.graft(model, where=where, input_size=64)
        assert {item.reason for item in report.left} <= {f"not chosen by where={measure_name(where)}"}
        return [site.name for site in report.replaced]

    def measure_name(where: Any) -> str:
        return getattr(where, "__name__", None) or repr(where)

    every = chosen(grafting.depthwise)
    assert len(every) == 11
    assert set(chosen(grafting.stride1)) | set(chosen(~grafting.stride1)) == set(every)
    late = chosen(grafting.stages(3, 4))
    assert 0 < len(late) < len(every)
    assert set(chosen(grafting.stages(3, 4) & grafting.stride1)) == set(late) & set(chosen(grafting.stride1))
    assert set(chosen(grafting.stages(1) | grafting.stages(4))) == set(chosen(grafting.stages(1, 4)))
    assert all(site.resolution == (8, 8) for site in _sites(model, lambda site: site.resolution == (8, 8)))
    with pytest.raises(InputError, match=r"nothing to graft in MobileNetV3: .*where=grouped"):
        edge_sk.graft(model, where=grafting.grouped, input_size=64)
    with pytest.raises(InputError, match="is not a predicate over sites"):
        edge_sk.graft(model, where="depthwise")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not name stages"):
        grafting.stages()


def _sites(model: nn.Module, where: Callable[[grafting.Site], bool]) -> list[grafting.Replaced]:
    return list(edge_sk.graft(model, where=where, input_size=64)[1].replaced)


def test_stages_are_resnets() -> None:
    model = edge_sk.create_model("resnext26")
    _, report = edge_sk.graft(model, input_size=64)
    assert all(site.name.startswith(f"layer{site.stage}.") for site in report.replaced)


def test_kernels_per_site() -> None:
    def choose(site: grafting.Site) -> str | None:
        return "3+3d2+5" if site.stride == 2 else None

    _, report = edge_sk.graft(edge_sk.create_model("shufflenetv2_0.5"), kernels=choose, input_size=64)
    assert {(site.kernels, "/2" in site.conv) for site in report.replaced} == {("3+3d2+5", True), ("3+3d2", False)}
    _, report = edge_sk.graft(block(), init="random", input_size=16)
    assert [site.kernels for site in report.replaced] == ["3+3d2"]
    with pytest.raises(InputError, match=r"at 1 \(3x3 depthwise 8\): SelectiveKernel selects between branches"):
        edge_sk.graft(block(), kernels="3", input_size=16)
    with pytest.raises(InputError, match=r"'3,5' is not SIZE"):
        edge_sk.graft(block(), kernels="3,5", input_size=16)


def test_selective_kernels_go_by_type_not_by_name(lived_in: LivedIn) -> None:
    """Somebody else's module of that name is looked into; ours and timm's under another name are not."""
    from timm.layers import SelectiveKernel as TimmSelectiveKernel

    theirs = lived_in(type("SelectiveKernel", (nn.Sequential,), {})(*block()))
    assert len(edge_sk.graft(theirs, input_size=16)[1].replaced) == 1
    for base in (edge_sk.SelectiveKernel, TimmSelectiveKernel):
        unit = type("Selective", (base,), {})(8, 8, groups=4)
        model = lived_in(nn.Sequential(nn.Conv2d(3, 8, 1), unit))
        with pytest.raises(InputError, match="has 1 selective kernels already"):
            edge_sk.graft(model, input_size=16)


def test_a_norm_act_goes_by_type_not_by_name(lived_in: LivedIn) -> None:
    norm = type("BatchNormAct2d", (nn.BatchNorm2d,), {})(8)
    grafted, report = edge_sk.graft(lived_in(block(norm)), input_size=16)
    assert report.replaced[0].norm is None
    assert type(grafted.get_submodule("2")) is type(norm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": 3}, "needs at least 2 kernels, got 1"),
        ({"kernels": lambda _: 3.0}, "kernel size=3.0 is not a whole number"),
        ({"kernels": True}, "kernel size=True is not a whole number"),
        ({"reduction": 0}, "reduction=0 is not a whole number"),
        ({"reduction": True}, "reduction=True is not a whole number"),
        ({"min_width": 8.0}, "min_width=8.0 is not a whole number"),
        ({"select": 1}, "select=1 is neither true nor false"),
    ],
)
def test_option_values_that_make_no_sense(options: dict[str, Any], message: str, lived_in: LivedIn) -> None:
    with pytest.raises(InputError, match=message):
        edge_sk.graft(lived_in(block()), input_size=16, **options)
