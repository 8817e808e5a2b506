"""The interpreter of Core ML programs against torch, operator by operator, on packages saved to disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.sweeping import RESULTS
from edge_sk.errors import InputError
from edge_sk.export.coreml import coremltools
from edge_sk.export.coreml.constants import CONSTANTS
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.coreml.operators import OPERATORS
from edge_sk.stderr import capture_stderr

SIZE = 16
TARGETS = ("iOS16", "iOS18")


class Compute(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _sum_of_gates(x: Tensor) -> Tensor:
    """Selective kernels as they are deployed: two branches mixed by a sigmoid of pooled features."""
    a, b = x[:, :4], x[:, 4:]
    gate = torch.sigmoid(a.mean((2, 3), keepdim=True) - b.mean((2, 3), keepdim=True))
    return b + (a - b) * gate


HEADS: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "depthwise_dilated": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
    "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "asymmetric": nn.Conv2d(8, 4, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
    "batch_norm": nn.BatchNorm2d(8),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "tanh": nn.Tanh(),
    "mish": nn.Mish(),
    "sigmoid": nn.Sigmoid(),
    "clamp": lambda x: x.clamp(-0.2, 0.4),
    "max_pool": nn.MaxPool2d(3, 2, 1),
    "avg_pool": nn.AvgPool2d(3, 2, 1),
    "avg_pool_inside": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "avg_pool_grid": nn.AdaptiveAvgPool2d(4),
    "max": lambda x: x.amax(1, keepdim=True),
    "mean": lambda x: x.mean((2, 3)),
    "linear": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    "linear_without_bias": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=False)),
    "softmax": lambda x: x.softmax(1),
    "slices": lambda x: x[:, 2:6] * 2.0 - 1.0,
    "shuffle": lambda x: x.view(1, 2, 4, SIZE, SIZE).transpose(1, 2).reshape(1, 8, SIZE, SIZE),
    "shuffle_after_concat": lambda x: (
        torch.cat([x, x * 2], 1).view(1, 2, 8, SIZE, SIZE).transpose(1, 2).reshape(1, 16, SIZE, SIZE)
    ),
    "shuffled_branches": lambda x: (
        torch.cat([x, x * 2, x * 3], 1).view(1, 3, 8, SIZE, SIZE).transpose(1, 2).reshape(1, 24, SIZE, SIZE)
    ),
    "gate": _sum_of_gates,
    "enlarged": lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "enlarged_to_the_corners": lambda x: nn.functional.interpolate(
        x, size=(31, 47), mode="bilinear", align_corners=True
    ),
    "enlarged_oddly": lambda x: nn.functional.interpolate(x[..., :7, :5], size=(17, 16), mode="bilinear"),
    "shrunk": lambda x: nn.functional.interpolate(x, size=(5, 7), mode="bilinear"),
    "nearest": lambda x: nn.functional.interpolate(x, scale_factor=3, mode="nearest"),
    "norm_alone": nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(8)),
}


class Heads(nn.Module):
    """One stem, and a head per operator: one conversion serves every case."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.heads = nn.ModuleDict(
            {name: head if isinstance(head, nn.Module) else Compute(head) for name, head in HEADS.items()}
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stem = 2 * self.stem(x / 255)
        return tuple(head(stem) for head in self.heads.values())


def _heads() -> Heads:
    torch.manual_seed(0)
    model = Heads().eval()
    norm = model.heads["batch_norm"]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    nn.init.uniform_(norm.running_mean, -1, 1)
    return model


def _tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, groups=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7)
    ).eval()


def _convert(model: nn.Module, **options: Any) -> Any:
    ct = coremltools()
    program = torch.export.export(model, (torch.zeros(1, 3, SIZE, SIZE),)).run_decompositions({})
    defaults = {
        "inputs": [ct.ImageType(name="image", shape=(1, 3, SIZE, SIZE))],
        "minimum_deployment_target": ct.target.iOS16,
        "compute_precision": ct.precision.FLOAT32,
    }
    with capture_stderr():
        return ct.convert(program, convert_to="mlprogram", skip_model_load=True, **(defaults | options))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> dict[str, Path]:
    """All heads in one package, saved for an old and a new system."""
    ct = coremltools()
    folder = tmp_path_factory.mktemp("heads")
    names = [ct.TensorType(name=name) for name in HEADS]
    for target in TARGETS:
        _convert(_heads(), outputs=names, minimum_deployment_target=ct.target[target]).save(
            str(folder / f"{target}.mlpackage")
        )
    return {target: folder / f"{target}.mlpackage" for target in TARGETS}


@pytest.fixture(scope="module", params=TARGETS)
def outputs(request, packages, image) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per head: what torch computes, and what the saved package does."""
    with torch.no_grad():
        expected = _heads()(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    got = MilProgram.load(packages[request.param]).predict(image).outputs
    return {name: (value.numpy(), got[name]) for name, value in zip(HEADS, expected, strict=True)}


@pytest.mark.parametrize("head", HEADS)
def test_every_operator_computes_what_torch_does(outputs, head):
    expected, got = outputs[head]
    assert expected.std() > 1e-3, "this head would not show an error"
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_the_operators_are_those_of_the_swept_networks_and_of_activations():
    """What ``act=`` puts into a unit becomes one of five more operators; some networks resize or take a maximum."""
    networks = json.loads((RESULTS / "coreml.json").read_text())["networks"].values()
    swept = {kind for network in networks for kind in network["operators"]}
    others = {"upsample_bilinear", "upsample_nearest_neighbor", "reduce_max"}
    assert set(OPERATORS) | {"classify"} == swept | others | {"elu", "gelu", "leaky_relu", "softplus", "tanh"}


def test_every_known_operator_is_exercised(packages):
    """An operator that no head reaches has never been compared with anything."""
    reached = {kind for path in packages.values() for kind in MilProgram.load(path).operations}
    assert set(OPERATORS) - reached == {"cast"}, "cast: in half precision, below"


def test_half_precision_stores_half_weights_and_notes_the_largest_value(tmp_path, image):
    ct = coremltools()
    model = _tiny()
    path = tmp_path / "half.mlpackage"
    _convert(model, compute_precision=ct.precision.FLOAT16).save(str(path))
    program = MilProgram.load(path)
    assert program.operations["cast"] == 1
    (got,) = program.predict(image).outputs.values()
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        expected = model.half().float()(pixels)
        largest = torch.stack([model[0](pixels).abs().max(), pixels.max()]).max().item()
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-4)
    assert program.largest_half == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize(
    ("form", "target"),
    [
        ("linear_symmetric", "iOS16"),
        ("linear_symmetric", "iOS18"),
        ("linear", "iOS16"),
        ("palette4", "iOS18"),
        ("palette6", "iOS16"),  # indices of 6 bits straddle the bytes
    ],
)
def test_compressed_weights_are_read_as_coremltools_reads_them(tmp_path, image, target, form):
    ct = coremltools()
    with capture_stderr():
        import coremltools.optimize.coreml as cto

        stored: Any
        dense = _convert(_tiny(), minimum_deployment_target=ct.target[target])
        if form.startswith("palette"):
            config = cto.OpPalettizerConfig(nbits=int(form[-1]), weight_threshold=0)
            stored = cto.palettize_weights(dense, cto.OptimizationConfig(global_config=config))
        else:
            config = cto.OpLinearQuantizerConfig(mode=form, weight_threshold=0)
            stored = cto.linear_quantize_weights(dense, cto.OptimizationConfig(global_config=config))
        decompressed: Any = cto.decompress_weights(stored)
    stored.save(str(tmp_path / "stored.mlpackage"))
    decompressed.save(str(tmp_path / "decompressed.mlpackage"))
    program = MilProgram.load(tmp_path / "stored.mlpackage")
    (function,) = stored.get_spec().mlProgram.functions.values()
    operations = function.block_specializations[function.opset].operations
    assert sum(op.type in CONSTANTS for op in operations) >= 2
    (got,) = program.predict(image).outputs.values()
    (expected,) = MilProgram.load(tmp_path / "decompressed.mlpackage").predict(image).outputs.values()
    with torch.no_grad():
        exact = _tiny()(torch.from_numpy(image).permute(2, 0, 1)[None].float()).numpy()
    assert np.abs(got - exact).max() > 1e-3, "compression must show"
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_equal_names_are_told_apart(packages, image, monkeypatch):
    """coremltools fills in default arguments when it loads, and names them like constants of the file."""
    from coremltools.converters.mil.frontend.milproto import load as milproto

    original = milproto.load

    def clashing(*args: Any, **kwargs: Any) -> Any:
        program = original(*args, **kwargs)
        for op in program.functions["main"].operations:
            if op.op_type == "const":
                op.outputs[0].name = "const_39"
        return program

    expected = MilProgram.load(packages["iOS16"]).predict(image).outputs
    monkeypatch.setattr(milproto, "load", clashing)
    got = MilProgram.load(packages["iOS16"]).predict(image).outputs
    for head, value in expected.items():
        np.testing.assert_array_equal(got[head], value)


def test_an_unknown_operator_is_named_and_not_skipped(tmp_path):
    _convert(nn.Sequential(nn.Conv2d(3, 4, 1), Compute(lambda x: x.cumsum(1))).eval()).save(
        str(tmp_path / "cumsum.mlpackage")
    )
    with pytest.raises(InputError, match=r"operator 'cumsum', which makes '\w+', is not known"):
        MilProgram.load(tmp_path / "cumsum.mlpackage")


def test_an_unknown_argument_is_named(packages, image, monkeypatch):
    monkeypatch.setitem(OPERATORS, "tanh", lambda: None)
    program = MilProgram.load(packages["iOS16"])
    with pytest.raises(InputError, match="cannot evaluate operator 'tanh' of "):
        program.predict(image)


def test_what_is_not_a_package_is_said(tmp_path, packages):
    with pytest.raises(InputError, match="no package at"):
        MilProgram.load(tmp_path / "nothing.mlpackage")
    damaged = tmp_path / "damaged.mlpackage"
    shutil.copytree(packages["iOS16"], damaged)
    weights = damaged / "Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable ML program"):
        MilProgram.load(damaged)
    model = damaged / "Data/com.apple.CoreML/model.mlmodel"
    model.write_bytes(model.read_bytes()[:-50])
    with pytest.raises(InputError, match="not a readable ML program"):
        MilProgram.load(damaged)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((SIZE, SIZE, 3), np.float32), "takes uint8 pixels"),
        (np.zeros((SIZE, SIZE + 1, 3), np.uint8), r"takes uint8 pixels of shape \(16, 16, 3\)"),
        ({"picture": np.zeros((SIZE, SIZE, 3), np.uint8)}, "takes uint8 pixels"),
    ],
)
def test_wrong_features_are_refused(packages, wrong, message):
    with pytest.raises(InputError, match=message):
        MilProgram.load(packages["iOS16"]).predict(wrong)
