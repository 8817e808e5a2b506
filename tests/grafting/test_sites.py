"""Which convolutions are replaced, found by dataflow or by structure, and why the others are skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
    assert [site.name for site in report.replaced] == ["features.1"]
    assert [(item.name, item.reason) for item in report.left] == [
        ("decoy", "the batch normalisation registered behind it reads another tensor")
    ]
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


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("second user", "goes to 2 operations"),
        ("twice", "is called at 2 places"),
        ("weight", "is read directly"),
        ("no norm", "followed by relu"),
    ],
)
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


def _norm_hooked() -> nn.Module:
    model = block()
    model[2].register_forward_pre_hook(lambda *_: None)
    return model


NOTHING = {
    "hook": (_hooked, "has a hook"),
    "hook on the norm": (_norm_hooked, "BatchNorm2d has a hook"),
    "parametrization": (_parametrized, "has a parametrization of weight"),
    "tied": (_tied, "shares its parameters"),
    "even": (lambda: block(kernel_size=4, padding=2), r"kernel is even \(4x4\)"),
    "dilated": (lambda: block(dilation=2, padding=2), r"it is dilated \(2\)"),
    "not square": (lambda: block(kernel_size=(1, 3), padding=(0, 1)), "kernel is 1x3, not square"),
    "unpadded": (lambda: block(padding=0), "not that of a centred kernel"),
    "reflected": (lambda: block(padding_mode="reflect"), "pads with 'reflect'"),
    "group norm": (lambda: block(nn.GroupNorm(2, 8)), "followed by GroupNorm, not by batch normalisation"),
    "no statistics": (lambda: block(nn.BatchNorm2d(8, track_running_stats=False)), "keeps no running statistics"),
    "dense": (lambda: block(groups=1), "no grouped or depthwise convolution"),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), "no grouped or depthwise"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_graft_is_an_error_with_the_reason(case: str) -> None:
    build, message = NOTHING[case]
    with pytest.raises(InputError, match=message):
        edge_sk.graft(build(), input_size=16)


def test_tensorflow_padding_and_frozen_norms_are_skipped() -> None:
    from timm.layers import Conv2dSame
    from torchvision.ops import FrozenBatchNorm2d

    with pytest.raises(InputError, match="Conv2dSame"):
        edge_sk.graft(nn.Sequential(Conv2dSame(3, 3, 3, stride=2, groups=3), nn.BatchNorm2d(3)), input_size=16)
    with pytest.raises(InputError, match="thaw it first"):
        edge_sk.graft(block(FrozenBatchNorm2d(8)), input_size=16)


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
    with pytest.raises(InputError, match="it is followed by BatchNormAct2d, not by batch normalisation"):
        edge_sk.graft(lived_in(block(norm)), input_size=16)


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
