"""Counts against formulas, against torch's own counter, against fvcore; the command; bad input."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import edge_sk
from edge_sk import InputError, SelectiveKernel, create_model, profile
from edge_sk.profiling import comparison
from edge_sk.profiling.__main__ import main
from edge_sk.profiling.counting import GATES

KNOWN = {
    # Issue 2's table, from the papers' descriptions and the authors' released networks.
    "sknet26": (16_746_408, 2.587e9),
    "shufflenetv2_0.5": (1_366_792, 40.48e6),
    "shufflenetv2_1.0": (2_278_604, 144.91e6),
    "sk_shufflenetv2_0.5": (1_442_096, 41.77e6),
    "sk_shufflenetv2_1.0": (2_459_410, 148.04e6),
    "sk_shufflenetv2_1.0@sk_units=main": (2_503_044, 148.79e6),
    "sk_mobilenetv2_1.0": (4_357_152, 307.58e6),
    "sk_mobilenetv2_1.0@sk_units=all": (4_532_360, 322.4e6),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small convolutions on several threads of a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "activations"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, bias=True), (1, 3, 10, 12), 3 * 8 * 9 * 10 * 12, 8 * 10 * 12),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (2, 8, 9, 9), 2 * (8 // 4) * 16 * 9 * 25, 2 * 16 * 25),
        (nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8), (1, 8, 7, 7), 8 * 25 * 49, 8 * 49),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 6 * 4 * 25, 6 * 100),
        (nn.Conv2d(4, 6, (1, 3)), (4, 1, 10), 4 * 6 * 3 * 8, 6 * 8),
        (nn.Linear(20, 7), (1, 3, 20), 3 * 20 * 7, 3 * 7),
        (nn.BatchNorm2d(4), (1, 4, 6, 6), 0, 0),
        (nn.AvgPool2d(2), (1, 4, 6, 6), 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_single_layers_match_their_formulas(layer, shape, macs, activations):
    counted = profile(layer, shape)
    assert (counted.macs, counted.activations) == (macs, activations)
    assert counted.params == sum(parameter.numel() for parameter in layer.parameters())


def test_selective_kernel_matches_its_formula():
    channels, side, branches, width = 64, 14, 2, 32
    unit = SelectiveKernel(channels, channels, groups=channels)
    counted = profile(unit, (1, channels, side, side))
    pixels = channels * side * side
    assert counted.gate_macs == (branches + 1) * channels * width
    assert counted.macs == branches * 9 * pixels + counted.gate_macs
    work = counted.elementwise_operators
    # Per branch: ReLU, pooling and multiplication by the attention; the sums of maps and of pooled vectors.
    assert work["mean"] == branches * pixels
    assert work["mul"] == branches * pixels
    assert work["add"] == (branches - 1) * (pixels + channels)
    assert work["relu"] == branches * pixels + width
    assert work["softmax"] == branches * channels
    assert counted.elementwise == sum(work.values())
    assert counted.by_module(None)["gate"].gate_macs == counted.by_module(None)["gate"].macs == counted.gate_macs


def test_gate_and_elementwise_work_of_a_sum_without_gate():
    counted = profile(SelectiveKernel(8, 8, groups=8, select=False), (1, 8, 4, 4))
    assert counted.gate_macs == 0
    assert counted.elementwise_operators == {"relu": 2 * 128, "add": 128}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name):
    params, macs = KNOWN[name]
    counted = profile(create_model(name))
    assert counted.params == params
    assert counted.macs == pytest.approx(macs, rel=5e-4)
    assert not counted.unsupported


@pytest.mark.parametrize("name", ["sk_shufflenetv2_0.5", "se_mobilenetv2_0.5", "sknet29", "timm:seresnet18"])
def test_every_matrix_operator_agrees_with_torch(name):
    """torch.utils.flop_counter counts two per MAC, from the dispatcher, not from a trace."""
    model = create_model(name).eval()
    counted = profile(model)
    with torch.no_grad(), FlopCounterMode(display=False) as torch_counter:
        model(torch.zeros(counted.input_size))
    ours = {"convolution": counted.operators["conv"], "addmm": counted.operators["linear"]}
    theirs = {str(op).split(".")[-1]: flops / 2 for op, flops in torch_counter.get_flop_counts()["Global"].items()}
    assert ours == theirs


@pytest.mark.parametrize("name", ["shufflenetv2_0.5", "sk_mobilenetv2_0.5"])
def test_fvcore_counts_the_same_and_its_total_is_kept(name, capsys):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    model = create_model(name).eval()
    counted = profile(model)
    with torch.no_grad():
        flops = FlopCountAnalysis(model, torch.zeros(counted.input_size)).unsupported_ops_warnings(False)
        activations = ActivationCountAnalysis(model, torch.zeros(counted.input_size)).unsupported_ops_warnings(False)
        flops.uncalled_modules_warnings(False)
        activations.uncalled_modules_warnings(False)
        operators = flops.by_operator()
        assert counted.macs == operators["conv"] + operators["linear"]
        assert main([name, "--json"]) == 0
        (record,) = json.loads(capsys.readouterr().out)["networks"]
        assert record["fvcore_total"] == flops.total() > counted.macs
        assert counted.activations == activations.total()


def test_modules_add_up_to_the_network():
    counted = profile(create_model("sk_shufflenetv2_0.5"))
    children = {name: cost for name, cost in counted.by_module(1).items() if name}
    for field in ("params", "macs", "gate_macs", "activations"):
        assert sum(getattr(cost, field) for cost in children.values()) == getattr(counted, field) > 0
    assert set(counted.by_module(0)) == {""}
    assert len(counted.by_module(None)) > len(counted.by_module(2)) > len(children)
    assert "stage2" in str(counted.by_module(1))
    assert max(map(len, str(counted.by_module(1)).splitlines())) < 200


def test_a_shared_module_counts_its_parameters_once_and_its_work_twice():
    layer = nn.Conv2d(4, 4, 1, bias=False)
    counted = profile(nn.Sequential(layer, layer), (1, 4, 3, 3))
    assert (counted.params, counted.macs) == (16, 2 * 16 * 9)


def test_a_shared_gate_is_not_counted_twice():
    unit = SelectiveKernel(8, 8, groups=8)
    once = profile(unit, (1, 8, 4, 4))
    assert profile(nn.Sequential(unit, unit), (1, 8, 4, 4)).gate_macs == 2 * once.gate_macs


def test_channel_attention_goes_by_type_not_by_name():
    class Gate(nn.Conv2d):
        """Somebody else's."""

    class SEModule(nn.Conv2d):
        """Likewise."""

    class Ours(edge_sk.selective_kernel.Gate):
        """Ours under another name."""

    class Theirs(timm.layers.SqueezeExcite):
        """timm's under another name."""

    assert profile(nn.Sequential(Gate(4, 4, 1), SEModule(4, 4, 1)), (1, 4, 3, 3)).gate_macs == 0
    assert profile(Ours(4, 2, 8), (1, 4, 1, 1)).gate_macs == 4 * 8 * 3
    assert profile(Theirs(16, rd_channels=2), (1, 16, 3, 3)).gate_macs == 2 * 16 * 2


def test_every_kind_of_channel_attention_exists():
    """A class that a library renamed would silently not be counted."""
    for path, kinds in GATES.items():
        for kind in kinds:
            assert issubclass(getattr(importlib.import_module(path), kind), nn.Module)


def test_largest_feature_map_names_its_module():
    largest = profile(create_model("shufflenetv2_0.5")).largest_feature_map
    assert largest.shape == (1, 24, 112, 112)
    assert largest.module.startswith("conv1")
    assert largest.elements == 24 * 112 * 112


def _attention() -> nn.Module:
    return nn.Sequential(nn.Flatten(0, 1), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))


def test_operators_that_nobody_counts_are_listed():
    counted = profile(_attention(), (1, 5, 8))
    assert counted.unsupported
    assert "not counted" in str(counted)
    assert "not counted" not in str(profile(nn.Linear(3, 3), (1, 1, 3)))


def test_the_network_stays_as_it_was():
    model: Any = create_model("sk_shufflenetv2_0.5").train()
    model.conv1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooked = []
    model.fc.register_forward_hook(lambda *_: hooked.append(True))
    profile(model)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 1
    assert len(hooked) == 1


def test_a_failed_trace_leaves_no_hooks_and_the_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(1, 1)).train()
    with pytest.raises(InputError, match="does not run on an input of 1x3x8x8"):
        profile(model, (1, 3, 8, 8))
    assert model[0].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_answers_that_are_dictionaries_can_be_counted():
    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1, bias=False)

        def forward(self, x):
            return {"out": self.conv(x), "aux": [x.mean()]}

    assert profile(Segmenter(), (1, 3, 4, 4)).macs == 3 * 2 * 16


def test_input_size_comes_from_the_network():
    assert profile(create_model("sknet29")).input_size == (1, 3, 32, 32)
    assert profile(nn.Conv2d(3, 1, 1)).input_size == (1, 3, 224, 224)
    assert profile(create_model("shufflenetv2_0.5", in_chans=1), (1, 1, 64, 64)).input_size == (1, 1, 64, 64)
    assert profile(nn.Conv2d(3, 1, 1), 64).input_size == (1, 3, 64, 64)
    assert profile(nn.Conv2d(3, 1, 1), np.int64(64)).input_size == (1, 3, 64, 64)  # type: ignore[arg-type]
    assert profile(nn.Conv2d(3, 1, 1), (3, 48, 64)).input_size == (1, 3, 48, 64)
    trained = nn.Conv2d(3, 1, 1)
    trained.default_cfg, trained.pretrained_cfg = {"input_size": (3, 8, 8)}, {"input_size": (3, 16, 16)}  # type: ignore[assignment]
    assert profile(trained).input_size == (1, 3, 16, 16)


def test_half_precision_networks_get_half_precision_images():
    assert profile(nn.Conv2d(3, 4, 1, bias=False).to(torch.bfloat16), (1, 3, 5, 5)).macs == 12 * 25


@pytest.mark.parametrize("size", [(1, 3, 0, 224), 0, -1, (1, 3, 2.5, 2), (), "224", (9, 9), (1, 1, 3, 8, 8), True, 2.5])
def test_bad_input_sizes(size):
    with pytest.raises(InputError, match=r"is not \(C, H, W\), \(N, C, H, W\) or the side"):
        profile(nn.Conv2d(3, 4, 1), size)


def test_too_small_an_image():
    with pytest.raises(InputError, match=r"does not run on an input of 1x3x32x32: .*; try another input size"):
        profile(create_model("timm:inception_v4"), 32)


def test_what_cannot_be_traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Conv2d(3, 4, 1))
    for wrong, got in ((scripted, "RecursiveScriptModule"), (None, "NoneType")):
        with pytest.raises(InputError, match=rf"profile takes a Python module \(nn.Module\), got {got}"):
            profile(wrong, (1, 3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cannot be traced, so it cannot be counted"):
        profile(nn.Sequential(scripted), (1, 3, 8, 8))
    in_place = nn.Conv2d(3, 4, 1)
    in_place.compile()
    for compiled in (in_place, torch.compile(nn.Conv2d(3, 4, 1))):
        with pytest.raises(InputError, match=r"cannot be traced, so it cannot be counted"):
            profile(compiled, (1, 3, 8, 8))
    with torch.device("meta"):
        empty = nn.Conv2d(3, 4, 1)
    with pytest.raises(InputError, match="has no weights"):
        profile(empty, (1, 3, 8, 8))


def test_bad_depth():
    with pytest.raises(InputError, match="depth -1 is negative"):
        profile(nn.Linear(2, 2), (1, 1, 2)).by_module(-1)


def test_comparison_shows_what_is_not_counted_only_when_there_is_something():
    plain = profile(nn.Linear(2, 2), (1, 1, 2))
    attention = profile(_attention(), (1, 5, 8))
    assert len(comparison([plain, attention]).columns) == len(comparison([plain]).columns) + 1


def test_command_prints_one_table(capsys):
    assert main(["sk_shufflenetv2_0.5", "shufflenetv2_0.5", "--input-size", "64", "--by-module"]) == 0
    out = capsys.readouterr().out
    assert "sk_shufflenetv2_0.5" in out
    assert "3x64x64" in out
    assert "stage2" in out


def test_command_prints_json_with_where_it_came_from(capsys):
    assert main(["sk_shufflenetv2_0.5@kernels=3+5", "timm:resnet18", "--json", "--by-module", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    first, second = record["networks"]
    assert first["name"] == "sk_shufflenetv2_0.5@kernels=3+5"
    assert first["gate_macs"] > second["gate_macs"] == 0
    assert second["params"] == second["modules"][""]["params"] == 11_689_512
    assert "edge_sk.profiling" in record["command"]
    assert record["versions"]["fvcore"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sk_shufflenetv2_0.7"], "unknown model 'sk_shufflenetv2_0.7'; did you mean"),
        (["timm:resnet1800"], "timm has no model 'resnet1800'"),
        (["shufflenetv2_0.5", "--input-size", "big"], "--input-size 'big' is not SIDE or HEIGHTxWIDTH"),
        (["shufflenetv2_0.5", "--input-size", "0"], "--input-size '0' is not SIDE or HEIGHTxWIDTH"),
        (["timm:inception_v4", "--input-size", "32"], "inception_v4 does not run on an input of 1x3x32x32"),
        (["shufflenetv2_0.5", "--by-module", "-2"], "--by-module -2 is negative"),
    ],
)
def test_bad_command_lines_are_one_line(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_importing_the_package_does_not_import_fvcore():
    code = "import edge_sk, sys; print(any(name.split('.')[0] in ('fvcore', 'rich') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("name", edge_sk.list_models())
def test_the_whole_zoo_is_counted_completely(name):
    counted = profile(create_model(name))
    assert counted.macs > 0
    assert not counted.unsupported
    assert (counted.gate_macs > 0) == name.startswith(("sk", "se")) or "mobilenetv3" in name or "bam" in name
