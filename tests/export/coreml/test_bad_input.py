"""What cannot become a package is refused in one line."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage
from tests.export.coreml.networks import SIZE, make_network, tiny


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "iOS12"}, "unknown Core ML target 'iOS12'; known: iOS16, iOS17, iOS18, iOS26"),
        ({"precision": "int4"}, "mlpackage has no int4 here; it has fp16, fp32, int8, palette6"),
        ({"images": 8}, "parity on 8 images; at least 64 are needed"),
    ],
)
def test_bad_options(lived_in, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        to_mlpackage(make_network(tiny(lived_in)), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], "2 labels for 10 classes"),
        (["crane", *"bcdefghi", "crane"], "label 'crane' stands for 2 classes.*softmax=False"),
    ],
)
def test_bad_labels(lived_in, tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        to_mlpackage(make_network(tiny(lived_in), labels=labels), tmp_path)


def test_an_operator_that_cannot_be_converted_is_named_with_its_module(lived_in, tmp_path):
    network = make_network(tiny(lived_in, nn.Sequential(nn.Conv2d(16, 16, 1), Bessel())))
    with pytest.raises(InputError, match=r"cannot convert aten.special_i0.default of module '4.1' \(Bessel\)"):
        to_mlpackage(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x)


def test_five_channels_are_no_image(lived_in, tmp_path):
    network = make_network(tiny(lived_in, channels=5), input_size=(5, SIZE, SIZE), mean=(0.5,) * 5, std=(0.2,) * 5)
    with pytest.raises(InputError, match="images have 1 or 3 channels, the network wants 5"):
        to_mlpackage(network, tmp_path)


def test_without_coremltools_the_extra_is_named(lived_in, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(InputError, match=r'Core ML export needs coremltools.*pip install "edge-sk\[coreml\]"'):
        to_mlpackage(make_network(tiny(lived_in)), tmp_path)


def test_an_unwritable_output_is_said_before_the_work(lived_in, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write into .*file"):
        to_mlpackage(make_network(tiny(lived_in)), tmp_path / "file")
