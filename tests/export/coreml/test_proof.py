"""What proves a package can fail: each test spoils a package in one way."""

from __future__ import annotations

import collections
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage
from edge_sk.export.coreml import coremltools
from edge_sk.export.coreml.check import check_interface, check_operators, check_outputs
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.coreml.mlpackage import class_labels
from edge_sk.export.network import Network
from edge_sk.training.digits import CLASSES
from tests.export.coreml.networks import MEAN, WEIGHTS, make_network, tiny

MODEL = "Data/com.apple.CoreML/model.mlmodel"


def _verify(network: Network, package: Path) -> None:
    """What to_mlpackage does with the saved package before it keeps it."""
    program = MilProgram.load(package)
    check_interface(program, network, class_labels(network))
    check_outputs(program, network, "fp32")


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A package on disk to spoil."""
    return Path(shutil.copytree(exported[0], tmp_path / exported[0].name))


def _edit(package: Path, change: Callable[[Any, list[Any]], None]) -> None:
    """Change the program of a package on disk."""
    spec = coremltools().proto.Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    main = spec.mlProgram.functions["main"]
    change(spec, main.block_specializations[main.opset].operations)
    (package / MODEL).write_bytes(spec.SerializeToString())


def _made_by(operations: Any, name: str) -> Any:
    return next(op for op in operations if op.outputs[0].name == name)


def _weight(operations: Any, op: Any, argument: str = "weight") -> Any:
    """The constant that an operator takes as an argument."""
    return _made_by(operations, op.inputs[argument].arguments[0].name).attributes["val"]


def test_an_untouched_copy_passes(copied, network):
    _verify(network, copied)


@pytest.mark.parametrize("which", [0, 40, -1])
def test_one_flipped_weight_is_caught(copied, network, which):
    """First layer, middle, last: the sign of one weight in the file."""
    places = []

    def find(spec: Any, operations: Any) -> None:
        layers = [op for op in operations if op.type in ("conv", "linear")]
        places.append(_weight(operations, layers[which]).blobFileValue.offset)

    _edit(copied, find)
    content = bytearray((copied / WEIGHTS).read_bytes())
    # A blob begins with a header: sentinel and type (4 bytes each), size and place of its data (8 bytes each).
    size, start = np.frombuffer(content, np.uint64, 2, places[0] + 8)
    values = np.frombuffer(content, np.float32, int(size) // 4, int(start))
    largest = int(np.abs(values).argmax())
    values[largest] = -values[largest]
    (copied / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match="does not compute what the model computes on 64 images"):
        _verify(network, copied)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_dropped_bias_is_caught(copied, network, kind):
    def drop(spec: Any, operations: Any) -> None:
        layers = [op for op in operations if op.type == kind and "bias" in op.inputs]
        del layers[len(layers) // 2].inputs["bias"]

    _edit(copied, drop)
    with pytest.raises(InputError, match="does not compute what the model computes"):
        _verify(network, copied)


def test_two_swapped_labels_are_caught(copied, network):
    def swap(spec: Any, operations: Any) -> None:
        (classify,) = (op for op in operations if op.type == "classify")
        (argument,) = classify.inputs["classes"].arguments
        values = argument.value.immediateValue.list.values
        first, second = values[3].SerializeToString(), values[5].SerializeToString()
        values[3].ParseFromString(second)
        values[5].ParseFromString(first)

    _edit(copied, swap)
    assert MilProgram.load(copied).labels != CLASSES
    with pytest.raises(InputError, match="the labels in the package differ"):
        _verify(network, copied)


def test_labels_out_of_order_at_the_answer_are_caught(exported, network, monkeypatch):
    """As Core ML could answer: right labels, wrong one returned."""
    program = MilProgram.load(exported[0])
    right = program.predict

    def wrong(image: Any) -> Any:
        prediction = right(image)
        return dataclasses.replace(prediction, label="8" if prediction.label != "8" else "9")

    monkeypatch.setattr(program, "predict", wrong)
    with pytest.raises(InputError, match="the labels are out of order"):
        check_outputs(program, network, "fp32")


def test_a_wrong_mean_is_caught(copied, network):
    def shift(spec: Any, operations: Any) -> None:
        image = next(op for op in operations if op.type == "add")
        value = _weight(operations, image, "y")
        assert np.allclose(value.immediateValue.tensor.floats.values, [-m for m in MEAN])
        value.immediateValue.tensor.floats.values[1] += 0.03

    _edit(copied, shift)
    with pytest.raises(InputError, match="does not compute what the model computes"):
        _verify(network, copied)


def test_another_scale_of_the_pixels_is_caught(copied, network):
    def rescale(spec: Any, operations: Any) -> None:
        image = next(op for op in operations if op.type == "mul")
        _weight(operations, image, "y").immediateValue.tensor.floats.values[0] *= 255 / 256

    _edit(copied, rescale)
    with pytest.raises(InputError, match="does not compute what the model computes"):
        _verify(network, copied)


def test_swapped_colours_are_caught(copied, network):
    def swap(spec: Any, operations: Any) -> None:
        spec.description.input[0].type.imageType.colorSpace = 30  # BGR

    _edit(copied, swap)
    with pytest.raises(InputError, match="has colour space 30"):
        _verify(network, copied)


def test_another_input_size_is_caught(exported, network):
    other = dataclasses.replace(network, input_size=(3, 32, 32))
    with pytest.raises(InputError, match=r"the network \(3, 32, 32\)"):
        _verify(other, exported[0])


def test_a_classifier_without_softmax_is_caught(copied, network):
    def skip(spec: Any, operations: Any) -> None:
        (softmax,) = (op for op in operations if op.type == "softmax")
        (classify,) = (op for op in operations if op.type == "classify")
        logits = softmax.inputs["x"].arguments[0].name
        classify.inputs["probabilities"].arguments[0].name = logits

    _edit(copied, skip)
    with pytest.raises(InputError, match="the classifier has no softmax"):
        _verify(network, copied)


def test_another_networks_weights_are_caught(exported, lived_in, network):
    torch.manual_seed(1)
    other = lived_in(edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10), seed=1)
    with pytest.raises(InputError, match="does not compute what the model computes"):
        _verify(dataclasses.replace(network, model=other), exported[0])


def test_added_transposes_are_caught(exported, network):
    program = MilProgram.load(exported[0])
    graph = torch.export.export(nn.Identity(), (torch.zeros(1),))
    check_operators(program, graph)
    program.operations = collections.Counter(transpose=1, conv=95)
    with pytest.raises(InputError, match="1 transpose operators where the network has 0"):
        check_operators(program, graph)
    program.operations = collections.Counter(cast=3)
    with pytest.raises(InputError, match="3 cast operators where the network has 2"):
        check_operators(program, graph)
    program.max_rank = 6
    with pytest.raises(InputError, match="6 axes and Core ML allows 5"):
        check_operators(program, graph)


class Huge(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 256.0 * 256.0 * 2.0**-16  # powers of two: nothing is lost in half precision


def test_a_value_beyond_half_precision_is_refused(lived_in, tmp_path):
    network = make_network(tiny(lived_in, Huge()))
    with pytest.raises(InputError, match=r"a value reaches .* half precision ends at 65504.*export fp32"):
        to_mlpackage(network, tmp_path, precision="fp16")
    assert list(tmp_path.iterdir()) == []
    to_mlpackage(network, tmp_path, precision="fp32")
