"""In timm's registry the zoo behaves as timm's own models do (after timm's tests/test_models.py)."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.models import FeatureInfo
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import edge_sk
from edge_sk import InputError
from edge_sk.models._timm import timm_name
from edge_sk.models.shufflenetv2 import WIDTHS, ShuffleNetV2

NAMES = edge_sk.register_with_timm()
# One of each construction; the slow sweep takes every name.
SAMPLE = ["se_shufflenetv2_050", "sk_shufflenetv2_050", "sk_mobilenetv2_050", "sknet26", "sknet29"]


def size(name: str) -> int:
    return 32 if "29" in name else 64


def test_names() -> None:
    assert timm_name("sk_shufflenetv2_1.0") == "sk_shufflenetv2_100"
    assert timm_name("sk_mobilenetv2_1.4") == "sk_mobilenetv2_140"
    assert timm_name("resnext29_16x32d") == "resnext29_16x32d"
    assert edge_sk.register_with_timm() == NAMES
    assert set(NAMES) <= set(timm.list_models())
    assert "mobilenetv2_100" not in NAMES  # timm's own stays timm's
    assert timm.list_models("sk_shufflenetv2*") == [f"sk_shufflenetv2_{w}" for w in ("050", "100", "150", "200")]


def classifier_protocol(name: str) -> None:
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    assert cfg["architecture"] == name
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    x = torch.randn(1, *cfg["input_size"])
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, model.num_features, *cfg["pool_size"])
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (1, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(features), model(x))
        model.set_grad_checkpointing()
        torch.testing.assert_close(model.forward_head(features), model(x), rtol=1e-4, atol=1e-4)
        assert model.get_classifier().out_features == cfg["num_classes"]
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pre_logits, rtol=1e-4, atol=1e-4)
        if not isinstance(model, timm.models.MobileNetV3):  # which pools before its last convolution
            model.reset_classifier(0, "")
            assert model(x).shape == features.shape
            unpooled = timm.create_model(name, num_classes=0, global_pool="").eval()
            assert unpooled(x).shape == features.shape


def features_protocol(name: str) -> None:
    model = timm.create_model(name, features_only=True, in_chans=1).eval()
    side = size(name)
    outputs = model(torch.randn(1, 1, side, side))
    assert len(outputs) >= 3
    check_levels(model.feature_info, outputs, side)
    whole = timm.create_model(name).eval()
    x = torch.randn(1, 3, side, side)
    last, levels = whole.forward_intermediates(x)
    torch.testing.assert_close(last, whole.forward_features(x))
    check_levels(FeatureInfo(whole.feature_info, tuple(range(len(whole.feature_info)))), levels, side)
    two = whole.forward_intermediates(x, indices=2, intermediates_only=True)
    assert [t.shape for t in two] == [t.shape for t in levels[-2:]]


def check_levels(info: FeatureInfo, outputs: list[torch.Tensor], side: int) -> None:
    assert len(info.channels()) == len(outputs)
    for channels, reduction, output in zip(info.channels(), info.reduction(), outputs, strict=True):
        assert output.shape[1] == channels
        assert output.shape[2] == math.ceil(side / reduction)


def training_protocol(name: str) -> None:
    model = timm.create_model(name, num_classes=42, in_chans=1).train()
    side = size(name)
    x = torch.randn(2, 1, side, side)
    model.set_grad_checkpointing()
    out = model(x)
    assert out.shape == (2, 42)
    out.mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


def tracing_protocol(name: str) -> None:
    from timm.models import get_notrace_functions, get_notrace_modules

    model = timm.create_model(name).eval()
    side = size(name)
    x = torch.randn(1, 3, side, side)
    leaves = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    nodes = get_graph_node_names(model, tracer_kwargs=leaves)[1]
    graph = create_feature_extractor(model, [nodes[-1]], tracer_kwargs=leaves)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[nodes[-1]], model(x))


def scripting_protocol(name: str) -> None:
    from timm.layers import set_scriptable

    with set_scriptable(True):
        model: nn.Module = timm.create_model(name).eval()
    x = torch.randn(1, 3, size(name), size(name))
    with pytest.warns(FutureWarning, match="torch.jit"):
        scripted = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-4)


PROTOCOLS = [classifier_protocol, features_protocol, training_protocol, tracing_protocol, scripting_protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SAMPLE)
def test_protocol(name: str, protocol) -> None:
    protocol(name)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAMPLE])
def test_protocol_of_the_rest(name: str, protocol) -> None:
    protocol(name)


def test_options_and_errors() -> None:
    model = timm.create_model("sk_shufflenetv2_050", kernels="3+5", sk_units="all", drop_rate=0.1, num_classes=3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    with pytest.raises(InputError, match="no trained weights of sk_shufflenetv2_100 to download"):
        timm.create_model("sk_shufflenetv2_100", pretrained=True)
    with pytest.raises(InputError, match="global_pool='max' is not known"):
        timm.create_model("sk_shufflenetv2_050", global_pool="max")
    with pytest.raises(InputError, match="global_pool='' leaves a map"):
        timm.create_model("sk_shufflenetv2_050", global_pool="")
    with pytest.raises(InputError, match="global_pool=None is not known here"):
        ShuffleNetV2(WIDTHS["0.5"], global_pool=None)


@pytest.mark.parametrize("name", ["sk_shufflenetv2_0.5", "resnext29_16x32d"])
def test_a_new_classifier_is_like_the_rest(name: str) -> None:
    model = edge_sk.create_model(name).eval().bfloat16()
    model.reset_classifier(10)
    out = model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert (out.dtype, out.shape) == (torch.bfloat16, (1, 10))
    with torch.device("meta"):
        elsewhere = edge_sk.create_model(name)
    elsewhere.reset_classifier(10)
    assert elsewhere.get_classifier().weight.device.type == "meta"
    with pytest.raises(InputError, match="global_pool='max' is not known"):
        model.reset_classifier(10, "max")
    assert model.global_pool == "avg"
