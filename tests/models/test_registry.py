"""The zoo: exact counts, every name runs, and names, options and weights that are wrong say so."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import edge_sk
from edge_sk import InputError, SelectiveKernel
from edge_sk.models import default_recipe
from edge_sk.models._registry import todays_name

LivedIn = Callable[[nn.Module], nn.Module]
# One of each construction, small; the slow sweep takes the other names.
SAMPLE = ["shufflenetv2_0.5", "se_shufflenetv2_0.5", "sk_shufflenetv2_1.0", "se_mobilenetv2_0.5", "sk_mobilenetv2_0.5"]
SAMPLE += ["sk_mobilenetv1_1.0", "sk_mobilenetv3_small_1.0", "sk_mobilenetv4_conv_small", "sknet26", "sknet29"]

EXACT = {
    "sknet26": 16_746_408,
    "sknet50": 27_479_784,
    "sknet101": 48_736_040,
    "sknet50@kernels=3+3d2+3d3": 29_249_512,
    "resnext50": 25_028_904,
    "resnext101": 44_177_704,
    "shufflenetv2_1.0": 2_278_604,
    "shufflenetv2_0.5": 1_366_792,
    "sk_shufflenetv2_0.5": 1_442_096,
    "sk_shufflenetv2_1.0": 2_459_410,
    "sk_mobilenetv1_1.0": 4_714_216,
    "sk_mobilenetv2_0.5": 2_267_144,
    "sk_mobilenetv2_1.0": 4_357_152,
    "sk_mobilenetv2_1.4": 7_670_132,
    "sk_mobilenetv3_small_1.0": 2_759_952,
    "sk_mobilenetv3_large_1.0": 6_054_532,
    "sk_mobilenetv4_conv_small": 4_151_432,
    "sk_mobilenetv2_1.0@sk_units=stride1": 4_417_328,
    "sk_mobilenetv2_1.0@sk_units=all": 4_532_360,
    "sk_shufflenetv2_1.0@sk_units=late": 2_440_600,
    # DCANet's: d = C / 8 without a floor.
    "sk_mobilenetv2_1.0@sk_units=all,reduction=8,min_width=1": 5_277_248,
    "sknet29": 27_813_450,
}
# What the facts give in millions: SK placements, SE, Tables 3, 6 and 7, the CIFAR networks.
ROUNDED = {
    "sk_shufflenetv2_0.5@sk_units=main": 1.460,
    "sk_shufflenetv2_0.5@sk_units=all": 1.478,
    "sk_shufflenetv2_1.0@sk_units=main": 2.503,
    "sk_shufflenetv2_1.0@sk_units=all": 2.543,
    "se_shufflenetv2_0.5": 1.397,
    "se_shufflenetv2_1.0": 2.449,
    "sk_mobilenetv1_1.0@sk_units=all": 4.862,
    "senet50": 27.6,
    "senet101": 49.0,
    "resnext50_bam": 25.4,
    "resnext50_wider": 28.0,
    "resnext56": 27.3,
    "resnext50_36x4d": 27.5,
    "sknet50@kernels=3+3d3": 27.5,
    "sknet50@kernels=3+3": 27.5,
    "sknet50@kernels=3+5g64": 28.0,
    "sknet50@kernels=3+7g128": 28.0,
    "sknet50@kernels=3d3,select=false": 25.0,
    "sknet50@kernels=3+3d2,select=false": 26.5,
    "sknet50@kernels=3+3d2+3d3,select=false": 27.9,
    "resnext29_16x32d": 25.1,
    "resnext29_8x64d": 34.4,
    "resnext29_16x64d": 68.2,
    "senet29": 34.9,
}


# Of names and shapes in order: what a file of weights depends on.
KEYS = {
    "sknet26": "e1f309c9c7e0efa6",
    "sknet50": "736a0bce0c0fa011",
    "sknet101": "647cbec80cc033ef",
    "sknet29": "40377dc640d55b17",
    "senet50": "ab3fe0e49c8c327e",
    "resnext50_bam": "d967603338a3c474",
    "resnext50_cbam": "ab31c678c9440ff6",
    "resnext29_8x64d": "52e7fbb0de1d793b",
    "sk_shufflenetv2_1.0": "01c9640ed6a31223",
}


@pytest.mark.parametrize(("name", "expected"), KEYS.items())
def test_keys_of_weights_do_not_move(name: str, expected: str) -> None:
    with torch.device("meta"):
        state = edge_sk.create_model(name).state_dict()
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(text.encode()).hexdigest().startswith(expected)


def count(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in edge_sk.create_model(name).parameters())


@pytest.mark.parametrize(("name", "expected"), EXACT.items())
def test_exact_parameters(name: str, expected: int) -> None:
    assert count(name) == expected


@pytest.mark.parametrize(("name", "millions"), ROUNDED.items())
def test_parameters_in_millions(name: str, millions: float) -> None:
    digits = len(str(millions).split(".")[1])
    assert math.isclose(count(name) / 1e6, millions, abs_tol=0.51 * 10**-digits)


def test_every_name_of_the_design_exists() -> None:
    widths = ("0.5", "1.0", "1.5", "2.0")
    mobile = ("mobilenetv1_1.0", "mobilenetv2_0.5", "mobilenetv2_1.0", "mobilenetv2_1.4", "mobilenetv3_small_1.0")
    mobile += ("mobilenetv3_large_1.0", "mobilenetv4_conv_small")
    names = {f"{kind}shufflenetv2_{width}" for kind in ("", "se_", "sk_") for width in widths}
    names |= {f"{kind}{name}" for kind in ("", "sk_") for name in mobile}
    names |= {f"se_{name}" for name in mobile[:4]}
    names |= {f"{kind}{depth}" for kind in ("resnext", "senet", "sknet") for depth in (26, 50, 101)}
    names |= {"resnext50_wider", "resnext56", "resnext50_36x4d"}
    names |= {f"resnext{depth}_{gate}" for depth in (50, 101) for gate in ("bam", "cbam")}
    names |= {"resnext29_16x32d", "resnext29_8x64d", "resnext29_16x64d", "senet29", "sknet29"}
    assert set(edge_sk.list_models()) == names


def test_listing_is_natural_and_filters() -> None:
    assert edge_sk.list_models("sknet*") == ["sknet26", "sknet29", "sknet50", "sknet101"]
    assert edge_sk.list_models("sk_shufflenetv2_*") == [f"sk_shufflenetv2_{w}" for w in ("0.5", "1.0", "1.5", "2.0")]
    assert edge_sk.list_models("nothing*") == []
    assert edge_sk.list_models("") == edge_sk.list_models([]) == edge_sk.list_models("*")
    assert edge_sk.list_models(["sknet*", "senet2*", "sknet26"]) == [
        "senet26",
        "senet29",
        *edge_sk.list_models("sknet*"),
    ]
    assert edge_sk.list_models("sknet*", exclude_filters="*29") == ["sknet26", "sknet50", "sknet101"]
    assert edge_sk.list_models(("sknet*",), exclude_filters=["*29", "*1"]) == ["sknet26", "sknet50"]
    for pattern in (5, ["sk*", None]):
        with pytest.raises(InputError, match=r"(5|None) is no pattern of names: give text such as 'sk_\*'"):
            edge_sk.list_models(pattern)  # type: ignore[arg-type]


def run_once(name: str) -> None:
    """Forward, backward and torch.export, at a small size."""
    model = edge_sk.create_model(name, num_classes=7)
    c, h, _ = model.default_cfg["input_size"]
    x = torch.randn(2, c, *(2 * [32 if h == 32 else 64]))
    out = model(x)
    assert out.shape == (2, 7)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLE)
def test_runs_trains_and_exports(name: str) -> None:
    run_once(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in edge_sk.list_models() if name not in SAMPLE])
def test_the_rest_runs_trains_and_exports(name: str) -> None:
    run_once(name)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("sk_shufflenetv2_1.0", 13),
        ("sk_mobilenetv2_1.0", 9),
        ("sk_mobilenetv2_1.0@sk_units=all", 17),
        ("sknet26", 8),
        ("sknet29", 9),
    ],
)
def test_number_of_units(name: str, units: int) -> None:
    with torch.device("meta"):
        model = edge_sk.create_model(name)
    assert sum(isinstance(module, SelectiveKernel) for module in model.modules()) == units


def test_channels_and_classes() -> None:
    model = edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=3, in_chans=1, drop_rate=0.2)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)
    assert edge_sk.create_model("sknet29").default_cfg["num_classes"] == 10
    grey = edge_sk.create_model("sk_mobilenetv2_0.5", in_chans=1)
    assert grey(torch.randn(2, 1, 64, 64)).shape == (2, 1000)
    assert grey.default_cfg["input_size"] == (1, 224, 224)
    assert edge_sk.create_model("timm:mobilenetv2_050", num_classes=0)(torch.randn(2, 3, 64, 64)).shape == (2, 1280)


def test_a_width_is_between_those_of_the_paper() -> None:
    def channels(model: Any) -> list[int]:
        return [info["num_chs"] for info in model.feature_info]

    # The channels of the 2.0x column of the paper.
    assert channels(edge_sk.create_model("shufflenetv2_1.0@width=2.1034")) == [24, 24, 244, 488, 976]
    wider = edge_sk.create_model("sk_shufflenetv2_0.5@width=1.16", num_classes=3)
    assert channels(wider) == [24, 24, 56, 112, 222]
    assert wider(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_early_and_late_units_together_are_those_of_stride_1() -> None:
    def units(place: str) -> set[str]:
        with torch.device("meta"):
            model = edge_sk.create_model(f"sk_mobilenetv2_0.5@sk_units={place}")
        return {name for name, module in model.named_modules() if isinstance(module, SelectiveKernel)}

    assert units("early") | units("late") == units("stride1")
    assert not units("early") & units("late")
    assert len(units("early")) == 4


@pytest.mark.parametrize("name", ["sk_mobilenetv2_0.5", "se_mobilenetv2_0.5", "sknet26", "timm:mobilenetv2_050"])
def test_stochastic_depth_where_timm_has_it(name: str, lived_in: LivedIn) -> None:
    from timm.layers import DropPath

    model = lived_in(edge_sk.create_model(f"{name}@drop_path_rate=0.5", num_classes=3)).train()
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert max(rate for rate in rates if rate is not None) > 0.3
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert not any(isinstance(m, DropPath) and m.drop_prob for m in edge_sk.create_model(name).modules())


def test_none_is_not_given_and_numpys_numbers_are_numbers() -> None:
    model = edge_sk.create_model(
        "sk_mobilenetv2_0.5", num_classes=np.int64(3), in_chans=np.int32(1), drop_rate=np.float32(0.5),
        drop_path_rate=None, kernels=[np.int64(3), np.int64(5)], reduction=np.int16(8), min_width=None, select=None,
    )  # fmt: skip
    assert repr(model) == repr(
        edge_sk.create_model("sk_mobilenetv2_0.5", num_classes=3, in_chans=1, drop_rate=0.5, kernels="3+5", reduction=8)
    )


def test_other_libraries_names() -> None:
    for name in ("timm:mobilenetv2_050", "torchvision:shufflenet_v2_x0_5"):
        model = edge_sk.create_model(name, num_classes=4).eval()
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4)
        assert model.default_cfg["input_size"] == (3, 224, 224)
        assert default_recipe(name) == "light"


def test_default_recipe_and_size() -> None:
    assert default_recipe("sk_mobilenetv2_1.0@reduction=8") == "light"
    assert default_recipe("sknet50") == "large"
    assert default_recipe("sknet29") == "cifar"
    for name in (
        "timm:tf_mobilenetv3_small_100",
        "timm:mobileone_s0@kernels=auto",
        "timm:tinynet_a",
        "timm:fbnetc_100",
    ):
        assert default_recipe(name) == "light"
    for name in ("timm:resnext50_32x4d", "torchvision:resnet18", "timm:convnext_atto"):
        assert default_recipe(name) == "large"
    for name, size in (("sknet29", (3, 32, 32)), ("sk_shufflenetv2_1.0", (3, 224, 224))):
        assert edge_sk.create_model(name).default_cfg["input_size"] == size


def test_starts_from_a_file(tmp_path: Path, lived_in: LivedIn) -> None:
    trained = lived_in(edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=5))
    x = torch.randn(2, 3, 64, 64)
    safe, pickled = tmp_path / "model.safetensors", tmp_path / "weights.pth"
    save_file(trained.state_dict(), safe)
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, pickled)
    for source in (safe, tmp_path, pickled):
        model = edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=5, init_from=source).eval()
        torch.testing.assert_close(model(x), trained(x))
    other_classes = edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=6, init_from=safe)
    assert torch.equal(other_classes.state_dict()["conv5.0.weight"], trained.state_dict()["conv5.0.weight"])


def test_selective_kernels_start_from_the_plain_network(tmp_path: Path, lived_in: LivedIn) -> None:
    plain = lived_in(edge_sk.create_model("mobilenetv2_0.5", num_classes=5))
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    grafted = edge_sk.create_model(
        "sk_mobilenetv2_0.5", num_classes=5, kernels="3+5", init_from=tmp_path / "plain.safetensors"
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(grafted(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plain", ["shufflenetv2_0.5", "timm:mobilenetv2_050"])
def test_kernels_by_stage_are_a_grafts_by_a_function(plain: str) -> None:
    stride1, stages = edge_sk.grafting.stride1, edge_sk.grafting.stages
    grafted, report = edge_sk.graft(
        edge_sk.create_model(plain, num_classes=5),
        kernels=lambda site: "3+5+7" if site.stage == 2 else None,
        where=stride1 & stages(2, 4),
        init="random",
    )
    name = plain if plain.startswith("timm:") else f"sk_{plain}"
    named = edge_sk.create_model(f"{name}@kernels=2:3+5+7/4:auto,sk_units=stride1", num_classes=5)
    assert {site.stage for site in report.replaced} == {2, 4}
    assert [str(module) for module in named.modules()] == [str(module) for module in grafted.modules()]


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("shufflenetv2_0.5", "shufflenetv2_0.5"),
        ("mobilenetv2_0.5", "sk_mobilenetv2_0.5@kernels=3+5"),
        ("sk_mobilenetv2_0.5", "sk_mobilenetv2_0.5"),
        ("timm:mobilenetv3_small_050", "timm:mobilenetv3_small_050"),
        ("timm:mobilenetv3_small_050", "timm:mobilenetv3_small_050@kernels=3+5"),
    ],
)
def test_weights_of_a_classifier_start_a_network_without(
    weights: str, name: str, tmp_path: Path, lived_in: LivedIn
) -> None:
    trained = lived_in(edge_sk.create_model(weights, num_classes=5))
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    features = edge_sk.create_model(name, num_classes=0, init_from=tmp_path / "trained.safetensors").eval()
    assert features.default_cfg["num_classes"] == 0
    x = torch.randn(2, 3, 64, 64)
    head = [module for module in trained.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        torch.testing.assert_close(head(features(x)), trained(x), rtol=1e-3, atol=1e-3)


def test_only_the_classifier_may_be_left_over(tmp_path: Path) -> None:
    state = edge_sk.create_model("shufflenetv2_0.5", num_classes=5).state_dict()
    del state["conv1.1.running_mean"]
    save_file(state | {"extra": torch.zeros(1)}, tmp_path / "damaged.safetensors")
    with pytest.raises(
        InputError,
        match=r"conv1.1.running_mean is missing there and \(24,\) here, extra is \(1,\) there and missing here$",
    ):
        edge_sk.create_model("shufflenetv2_0.5", num_classes=0, init_from=tmp_path / "damaged.safetensors")


def test_bad_weights(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, foreign)
    truncated = tmp_path / "truncated.safetensors"
    save_file(edge_sk.create_model("shufflenetv2_0.5").state_dict(), truncated)
    truncated.write_bytes(truncated.read_bytes()[:5000])
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a checkpoint")
    module = tmp_path / "module.pth"
    torch.save(nn.Linear(2, 2), module)
    numbers = tmp_path / "numbers.pth"
    torch.save([1, 2, 3], numbers)
    other_shape = tmp_path / "other.safetensors"
    save_file(edge_sk.create_model("shufflenetv2_1.0").state_dict(), other_shape)
    for source, message in (
        (foreign, r"of this network: conv1.0.weight is missing there and .*; and \d+ more$"),
        (truncated, "is not a whole safetensors file"),
        (damaged, "cannot be read as weights"),
        (module, "cannot be read as weights"),
        (numbers, "holds no state dict"),
        (tmp_path / "missing.pth", "no weights at .*missing.pth; give a run folder"),
        (other_shape, "of this network: .* is .* there and"),
        ("timm:no_such_model", "timm has no model 'no_such_model'"),
        ("torchvision:no_such_model", "torchvision has no model for classes or maps 'no_such_model'"),
        ("torchvision:mobilenet_v2.NOPE", "has no weights 'NOPE'; it has IMAGENET1K_V1"),
    ):
        with pytest.raises(InputError, match=message):
            edge_sk.create_model("shufflenetv2_0.5", init_from=source)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sk_shufflenetv2_1", {}, "unknown model 'sk_shufflenetv2_1'; did you mean sk_shufflenetv2_1.0"),
        (None, {}, "None is no name of a model: give text"),
        ("xyzzy", {}, "unknown model 'xyzzy'; edge_sk.list_models"),
        ("timm:mobilenetv2_10", {}, "timm has no model 'mobilenetv2_10'; did you mean"),
        ("torchvision:shufflenet", {}, "torchvision has no model for classes or maps 'shufflenet'"),
        ("shufflenetv2_1.0", {"kernels": "3+5"}, "has no option 'kernels' .it has no selective kernels."),
        ("mobilenetv2_1.0", {"sk_units": "all"}, "has no option 'sk_units' .*; it has drop_rate, drop_path_rate"),
        (
            "sk_shufflenetv2_1.0",
            {"sk_units": "some"},
            "sk_units='some' is not known; use 'all', 'stride1', 'early', 'late', 'main'",
        ),
        (
            "sk_shufflenetv2_1.0@kernels=2:3+5/2:auto",
            {},
            "'2:auto' is not STAGE:KERNELS with another stage from 0 to 9",
        ),
        ("sk_mobilenetv2_1.0@kernels=3:auto/9:auto", {}, "with sk_units='stride1', stage 9 has no site"),
        ("sk_shufflenetv2_1.0@kernels=3+5/2:auto", {}, "'3.5' is not STAGE:KERNELS .* for instance 2:3.5/3:auto"),
        ("sk_shufflenetv2_1.0@kernels=1:3+5", {}, "nothing to graft .* not chosen by where=stages.1. & stride1"),
        ("sk_shufflenetv2_1.0", {"select": "no"}, "select='no' is neither true nor false"),
        ("sk_shufflenetv2_1.0", {"kernels": "3"}, "needs at least 2 kernels, got 1"),
        ("sk_shufflenetv2_1.0", {"drop_rate": 1.5}, "drop_rate=1.5 is not a probability"),
        ("sk_mobilenetv2_0.5", {"drop_path_rate": 1}, "drop_path_rate=1 is not a probability"),
        ("timm:mobilenetv2_050", {"drop_path_rate": -1}, "drop_path_rate=-1 is not a probability"),
        ("sk_mobilenetv2_0.5", {"drop_rate": False}, "drop_rate=False is not a probability"),
        ("sk_shufflenetv2_1.0", {"drop_path_rate": 0.1}, "sk_shufflenetv2_1.0 has no option 'drop_path_rate'; it has"),
        ("shufflenetv2_0.5@width=0", {}, "width=0 must be a number from 0.1 to 10"),
        ("sk_shufflenetv2_0.5", {"width": "wide"}, "width='wide' must be a number from 0.1 to 10"),
        ("sknet29@num_classes=4", {}, "'num_classes' is no option of a name, but an argument of create_model"),
        ("sknet29", {"drop_path_rate": 0.1}, "sknet29 has no option 'drop_path_rate'; it has drop_rate, kernels"),
        ("sk_mobilenetv2_0.5", {"act_layer": "relu"}, "sk_mobilenetv2_0.5 has no option 'act_layer'; it has"),
        ("sk_shufflenetv2_1.0", {"kernels": 3}, "needs at least 2 kernels, got 1"),
        ("sk_shufflenetv2_1.0", {"kernels": 3.5}, "kernel size=3.5 is not a whole number"),
        ("sk_shufflenetv2_1.0@reduction=0", {}, "reduction=0 is not a whole number"),
        ("sk_shufflenetv2_1.0@min_width=true", {}, "min_width=True is not a whole number"),
        ("sk_shufflenetv2_1.0", {"select": 1}, "select=1 is neither true nor false"),
        ("sk_shufflenetv2_1.0", {"num_classes": 10.0}, "num_classes=10.0 is not a whole number of at least 0"),
        ("timm:mobilenetv2_050", {"num_classes": -1}, "num_classes=-1 is not a whole number of at least 0"),
        ("sk_shufflenetv2_1.0", {"in_chans": True}, "in_chans=True is not a whole number of at least 1"),
        ("timm:mobilenetv2_050", {"kernels": 3}, "needs at least 2 kernels, got 1"),
        ("timm:mobilenetv2_050", {"kernels": True}, "kernel size=True is not a whole number"),
        ("timm:mobilenetv2_050@kernels=3+5,reduction=0", {}, "reduction=0 is not a whole number"),
        ("sk_shufflenetv2_1.0@select", {}, "'select' in sk_shufflenetv2_1.0@select is not option=value"),
        ("timm:mobilenetv2_050", {"wrong": 1}, "timm:mobilenetv2_050 cannot be built with wrong=1: .*wrong"),
        ("timm:mobilenetv2_050.nope", {}, "timm:mobilenetv2_050.nope cannot be built: .*nope"),
        ("torchvision:mobilenet_v2", {"num_classes": 0}, "torchvision:mobilenet_v2 has no form without classes"),
        ("torchvision:mobilenet_v2", {"wrong": 1}, "torchvision:mobilenet_v2 cannot be built with wrong=1: .*wrong"),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edge_sk.create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "version", "today"),
    [
        ("sk_shufflenetv2_1.0", "0.1.0", "sk_shufflenetv2_1.0@act=relu"),
        ("sk_shufflenetv2_0.5@kernels=3+5", "0.1.3", "sk_shufflenetv2_0.5@act=relu,kernels=3+5"),
        ("sk_mobilenetv2_1.0", "0.1.0", "sk_mobilenetv2_1.0@sk_units=all,act=relu6"),
        ("sk_shufflenetv2_1.0", "0.2.0", "sk_shufflenetv2_1.0"),
        ("shufflenetv2_1.0", "0.1.0", "shufflenetv2_1.0"),
        ("sknet29", "0.1.0", "sknet29"),
        ("timm:resnet18", "0.1.0", "timm:resnet18"),
    ],
)
def test_networks_of_version_0_1_have_names_of_today(name: str, version: str, today: str) -> None:
    assert todays_name(name, version) == today
    edge_sk.create_model(today)


@pytest.mark.parametrize(
    "name", ["sk_mobilenetv3_small_1.0", "sk_mobilenetv4_conv_small", "timm:lcnet_050@kernels=3+5"]
)
def test_networks_of_version_0_1_that_cannot_be_built_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"was trained by edge_sk 0\.1\.0, .*: use that version"):
        todays_name(name, "0.1.0")
