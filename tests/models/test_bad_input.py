"""Senseless names, options, arguments and weights: a network, or one short line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import edge_sk
from edge_sk import InputError, Kernel, SelectiveKernel, UnitSpec, running
from edge_sk.errors import short, shown, whole_number
from edge_sk.models import _weights, default_recipe
from edge_sk.models._entry import Graft
from tests.mutations import extremes, mutated, outcome, values

fixtures = HealthCheck.function_scoped_fixture
quick = settings(deadline=None, max_examples=60, suppress_health_check=[fixtures, HealthCheck.too_slow])
few = settings(quick, max_examples=25)

ZOO = ["sk_shufflenetv2_0.5", "shufflenetv2_0.5", "resnext29_16x32d"]
LIBRARIES = ["timm:mobilenetv2_050", "timm:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:vgg11"]
OPTIONS = [*Graft.OPTIONS, "drop_rate", "drop_path_rate", "act_layer", "output_stride", "dropout", "num_classes"]
texts = (
    st.sampled_from(["3+5", "3+99d99", "auto", "all", "late", "none", "relu", "false", "1e308", "nan", "9" * 5000, "²"])
    | st.text()
    | (extremes | st.integers() | st.floats()).map(shown)
)


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MOST_VALUES", 2**20)


def works_or_is_refused(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    result, problem = outcome(function, *args, **options)
    assert len(problem) <= 600
    return result


def block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3))


@few
@given(st.sampled_from(ZOO + LIBRARIES), st.dictionaries(st.sampled_from(OPTIONS) | st.text(), texts, max_size=3))
def test_options_in_a_name(name: str, options: dict[str, str]) -> None:
    with torch.device("meta"):
        works_or_is_refused(edge_sk.create_model, f"{name}@{','.join(f'{key}={options[key]}' for key in options)}")


@few
@given(
    st.sampled_from([*ZOO, *LIBRARIES, "timm:", "torchvision:x"]) | values,
    st.dictionaries(st.sampled_from([*OPTIONS, "in_chans", "init_from"]), values | texts, max_size=2),
)
def test_arguments_of_create_model(name: Any, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        works_or_is_refused(edge_sk.create_model, name, **options)


@quick
@given(values | texts)
def test_names_and_patterns(name: Any) -> None:
    works_or_is_refused(default_recipe, name)
    works_or_is_refused(edge_sk.list_models, name, exclude_filters=name)


@quick
@given(st.dictionaries(st.sampled_from(["size", "dilation", "groups"]), values), values | texts)
def test_kernels(sizes: dict[str, Any], kernels: Any) -> None:
    kernel = works_or_is_refused(Kernel, **sizes)
    assert kernel is None or Kernel.parse(str(kernel)) == kernel
    spec = works_or_is_refused(UnitSpec, kernels=kernels)
    assert spec is None or spec.kernels is None or len(spec.kernels) <= 16


UNIT = ["in_channels", "out_channels", "kernels", "stride", "groups", "reduction", "min_width", "select", "act_layer"]


@quick
@given(st.dictionaries(st.sampled_from(UNIT), values | texts, max_size=3))
def test_arguments_of_the_unit(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        unit = works_or_is_refused(SelectiveKernel, **({"in_channels": 64, "out_channels": 64} | options))
        assert unit is None or sum(p.numel() for p in unit.parameters()) < 2**29


GRAFT = ["kernels", "where", "init", "reduction", "min_width", "select", "act", "input_size", "images"]


@few
@given(st.dictionaries(st.sampled_from(GRAFT), values | texts, max_size=2))
def test_arguments_of_graft(options: dict[str, Any]) -> None:
    works_or_is_refused(edge_sk.graft, block(), **({"input_size": 8} | options))


@quick
@given(values, st.sampled_from([nn.Conv2d(3, 2, 1), nn.LazyConv2d(3, 1), nn.Conv2d(3, 2, 1, device="meta")]))
def test_what_is_no_network_and_no_size(value: Any, model: nn.Module) -> None:
    for function in (edge_sk.profile, edge_sk.reparameterize, edge_sk.graft):
        with pytest.raises(InputError, match=r"takes a Python module \(nn.Module\), got "):
            function(value)
    cost = works_or_is_refused(edge_sk.profile, model, value)
    if cost is not None:
        works_or_is_refused(cost.by_module, value)
    works_or_is_refused(edge_sk.reparameterize, model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edge_sk.create_model(5), "5 is no name of a model: give text"),  # type: ignore[arg-type]
        (
            lambda: edge_sk.create_model(ZOO[0], num_classes=-1),
            "num_classes=-1 is not .* 0 and at most 100000",
        ),
        (lambda: edge_sk.create_model(ZOO[0], num_classes=10**9), "num_classes=1000000000 is not a whole number"),
        (lambda: edge_sk.create_model(ZOO[0], in_chans=10**6), "in_chans=1000000 is not .* at most 1024"),
        (lambda: edge_sk.create_model(ZOO[0]).reset_classifier(-1), "num_classes=-1 is not a whole number"),
        (
            lambda: edge_sk.create_model("timm:resnet18@act_layer=nope"),
            "timm:resnet18 cannot be built with act_layer='nope': ",
        ),
        (
            lambda: edge_sk.create_model("timm:resnet18@output_stride=3"),
            "built with output_stride=3: .*timm's documentation",
        ),
        (lambda: edge_sk.create_model("timm:resnet18@pretrained_cfg=5"), "cannot be built with pretrained_cfg=5: "),
        (lambda: edge_sk.create_model("timm:vit_tiny_patch16_224@depth=99999"), "depth=99999 is out of range"),
        (lambda: edge_sk.create_model("timm:resnet18@base_width=nan"), "base_width=nan is out of range"),
        (
            lambda: edge_sk.create_model("torchvision:vgg11@dropout=9"),
            "cannot be built with dropout=9: dropout probability",
        ),
        (lambda: edge_sk.create_model(f"{ZOO[0]}@kernels=99999999+3"), "kernel size=99999999 is not .* at most 63"),
        (lambda: edge_sk.create_model(f"{ZOO[0]}@kernels={'9' * 5000}+3"), r"kernel '9+ \.\.\. 9+' is not SIZE"),
        (lambda: edge_sk.create_model(f"{ZOO[0]}@kernels={'3+' * 5000}3"), "are more than 16 branches"),
        (lambda: edge_sk.create_model(f"{ZOO[0]}@kernels=3+3d99"), "kernel dilation=99 is not .* at most 63"),
        (lambda: edge_sk.create_model(f"{ZOO[0]}@min_width=99999"), "min_width=99999 is not .* at most 8192"),
        (lambda: edge_sk.create_model(f"{ZOO[0]}@select=true,select=false"), "gives 'select' twice"),
        (lambda: edge_sk.create_model(ZOO[0], sk_units=[1]), r"sk_units=\[1\] is not known"),
        (lambda: edge_sk.create_model(ZOO[0], reduction=10**6000), "reduction=a value of type int is not a whole"),
        (lambda: edge_sk.create_model(ZOO[0], drop_rate=10**400), "drop_rate=.* is not a probability"),
        (lambda: edge_sk.create_model(ZOO[0], init_from="x" * 5000), "no weights at x+"),
        (lambda: SelectiveKernel(2**14, 2**14, groups=1), r"more than 2\*\*28 weights: give"),
        (lambda: SelectiveKernel(64, 64, act_layer=lambda: 1 / 0), "act_layer=.* is neither the class"),
        (lambda: edge_sk.profile(block(), 10**5), r"input_size=\(3, 100000, 100000\) has more than"),
        (lambda: edge_sk.profile(block(), 8).by_module("1"), "depth '1' is negative or no number"),  # type: ignore[arg-type]
        (lambda: edge_sk.reparameterize(nn.LazyConv2d(3, 1)), "weight is lazy and has no shape yet"),
        (
            lambda: edge_sk.graft(block(), images=torch.empty(1, 3, 8, 8, device="meta")),
            "images is no batch .*meta",
        ),
    ],
)
def test_each_is_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert len(str(error.value)) <= 600
    assert "\n" not in str(error.value)


ODD: list[Any] = [np.array([3, 5]), torch.tensor(3), torch.tensor([3, 5]), object(), 10**5000, b"x"]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_values_that_have_no_truth_or_no_text(value: Any) -> None:
    for option in (*Graft.OPTIONS, "num_classes", "in_chans", "init_from", "drop_rate"):
        with torch.device("meta"):
            works_or_is_refused(edge_sk.create_model, ZOO[0], **{option: value})
    for option in GRAFT:
        works_or_is_refused(edge_sk.graft, block(), **({"input_size": 8} | {option: value}))
    with pytest.raises(InputError, match="is no pattern of names"):
        edge_sk.list_models(value)
    works_or_is_refused(edge_sk.grafting.stages, value)


def test_a_message_is_one_short_line() -> None:
    message = str(InputError("first\nsecond \x1b[31m" + "x" * 350_000 + " last"))
    assert len(message) <= 600
    assert message.startswith("first second \\x1b[31mxx")
    assert message.endswith("xx last")
    assert len(short("y" * 500, 60)) <= 60
    assert whole_number("size", 7, least=7, most=7) == 7


def network() -> Any:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.default_cfg = {"input_size": (3, 8, 8), "num_classes": 0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return model


FLAWS: dict[str, Callable[[], Tensor]] = {
    "is on the meta device": lambda: torch.empty(4, device="meta"),
    "is quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "is sparse": lambda: torch.ones(4).to_sparse(),
    "has the type torch.complex64, not torch.float32": lambda: torch.ones(4, dtype=torch.complex64),
    "has the type torch.bool, not torch.float32": lambda: torch.ones(4, dtype=torch.bool),
    "has the type torch.int64, not torch.float32": lambda: torch.ones(4, dtype=torch.int64),
    "is not finite": lambda: torch.tensor([1, 1, 1, math.nan]),
    "is not finite (nan or inf)": lambda: torch.tensor([1, 1, 1, 1e300], dtype=torch.float64),  # too large for float32
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(("flaw", "tensor"), FLAWS.items())
def test_tensors_that_are_no_weights(flaw: str, tensor: Callable[[], Tensor]) -> None:
    model = network()
    with pytest.raises(InputError) as error:
        _weights.Weights("there", model.state_dict() | {"1.weight": tensor()}, {}).load(model)
    assert f"the weights of there cannot be used: 1.weight {flaw}" in str(error.value)
    assert torch.equal(model[1].weight, torch.ones(4))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_and_other_whole_numbers() -> None:
    model = network()
    nested = torch.nested.nested_tensor([torch.ones(4)])
    with pytest.raises(InputError, match=r"1\.bias is nested"):
        _weights.Weights("there", model.state_dict() | {"1.bias": nested}, {}).load(model)
    half = {name: t.half() if t.is_floating_point() else t.int() for name, t in model.state_dict().items()}
    _weights.Weights("there", half, {}).load(model)


@pytest.mark.parametrize("images", [{"mean": (0.5,) * 4}, {"std": (0.5,) * 2}])
def test_means_of_other_images(images: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(InputError, match=r"this network: (mean|std) is \(.*\) there and \(0.5, 0.5, 0.5\) here"):
        _weights.Weights("there", model.state_dict(), images).load(model)


def written(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    state = network().state_dict() | {"half": torch.ones(3, dtype=torch.bfloat16), "none": torch.empty(0, 2)}
    _weights.write(folder / "model.safetensors", state)
    return folder / "model.safetensors", state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    alike = [one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in other]
    return one.keys() == other.keys() and all(alike)


def test_weights_are_read_with_and_without_a_digest(tmp_path: Path) -> None:
    path, state = written(tmp_path)
    assert same(_weights.read(path).state, state)
    assert same(load_file(path), state)
    save_file(state, path)  # as 0.1 did
    assert same(_weights.read(path).state, state)


@quick
@given(st.data())
def test_damaged_weights_are_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path, state = written(tmp_path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), place]))])
    found, _ = outcome(_weights.read, path)
    assert found is None or same(found.state, state)


def test_one_changed_value_is_noticed(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: its tensors do not match its digest; copy it again"):
        _weights.read(path)


IMAGES = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_pct": 0.9, "interpolation": "bicubic"}


@quick
@given(mutated(IMAGES))
def test_a_config_beside_weights(tmp_path: Path, config: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    images, *_ = works_or_is_refused(_weights._from_config, tmp_path / "config.json") or ({},)
    for key in images:
        assert key == "interpolation" or torch.tensor(images[key], dtype=torch.float64).isfinite().all()
        assert key != "std" or all(value > 0 for value in images[key])
        assert key != "crop_pct" or 0 < images[key] <= 1


@pytest.mark.parametrize(
    "text",
    [
        '{"std": [0.5, 0, 0.5]}',
        '{"std": [-1, -1, -1]}',
        '{"mean": [NaN, 0.5, 0.5]}',
        '{"mean": [1e999, 0.5, 0.5]}',
        '{"crop_pct": 0}',
        '{"crop_pct": 1.5}',
        '{"interpolation": "magic"}',
        '{"mean": [0.5], "mean": [0.6]}',
        '{"pretrained_cfg": 3}',
        "[" * 9999,
    ],
)
def test_numbers_of_a_config_that_make_no_sense(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is damaged .*; copy it again"):
        _weights._from_config(tmp_path / "config.json")
