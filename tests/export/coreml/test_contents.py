"""What is in a package for Core ML, and that it answers as the network does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from timm.layers import SqueezeExcite
from torch import nn

from edge_sk.export import to_mlpackage
from edge_sk.export.coreml import mlpackage
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.network import Network
from edge_sk.export.record import read_record, record_path
from edge_sk.training.digits import CLASSES
from tests.export.coreml.networks import MEAN, SIZE, STD, make_network, tiny


@pytest.fixture(scope="module")
def pictures(network) -> np.ndarray:
    images = next(iter(network.images(split="test", limit=64)))[0]
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_the_record_says_what_the_package_is_and_how_it_was_proven(exported, network):
    path, record = exported
    assert read_record(record_path(path)) == record
    assert path.name == "sk_shufflenetv2_0.5_coreml_fp32.mlpackage"
    assert record.size_bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert record.parity is not None
    assert record.parity.images == 64
    assert record.parity.top1_agreement == 1.0
    assert record.parity.relative is not None
    assert record.parity.relative < 1e-5
    assert any("not the arithmetic of the Neural Engine" in note for note in record.notes)
    assert record.program is not None
    assert record.program.max_rank == 4
    assert record.program.largest_half is None
    assert not {"transpose", "cast", "batch_norm", "split"} & set(record.program.operators)
    assert record.program.operators["concat"] >= 16
    assert "fold_batch_norm x43" in record.rewrites
    assert record.params == sum(p.numel() for p in network.model.parameters())


def test_the_package_describes_itself(exported):
    program = MilProgram.load(exported[0])
    description = program.description
    assert program.labels == CLASSES
    assert (description.predictedFeatureName, description.predictedProbabilitiesName) == (
        "classLabel",
        "classLabel_probs",
    )
    assert program.ends_in_softmax
    assert (program.image.name, program.image.channels) == ("image", 3)
    metadata = description.metadata
    assert metadata.userDefined["edge_sk.mean"] == "0.485,0.456,0.406"
    assert metadata.userDefined["edge_sk.arch"] == "sk_shufflenetv2_0.5"
    assert metadata.author
    assert metadata.license
    described = {one.name: one.shortDescription for one in (*description.input, *description.output)}
    assert "64x64" in described["image"]
    assert set(described) == {"image", "classLabel", "classLabel_probs"}
    assert all(described.values())
    assert sorted(file.name for file in exported[0].iterdir()) == ["Data", "Manifest.json"]


def test_the_answer_is_the_eager_models(exported, network, pictures):
    program = MilProgram.load(exported[0])
    pixels = torch.from_numpy(pictures[:4]).permute(0, 3, 1, 2) / 255
    normalised = (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        expected = network.model(normalised).softmax(1)
    for picture, probabilities in zip(pictures, expected, strict=False):
        answer = program.predict(picture).outputs
        assert answer["classLabel"] == CLASSES[int(probabilities.argmax())]
        assert list(answer["classLabel_probs"]) == CLASSES
        assert list(answer["classLabel_probs"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_half_and_eight_bits_pass_and_are_smaller(lived_in, tmp_path):
    wide = [nn.Conv2d(16, 256, 1), nn.ReLU(), nn.Conv2d(256, 256, 1), nn.ReLU(), nn.Conv2d(256, 16, 1)]
    network = make_network(tiny(lived_in, *wide))
    sizes = {}
    for precision in ("fp32", "fp16", "int8"):
        record = to_mlpackage(network, tmp_path, precision=precision)
        sizes[precision] = record.size_bytes
        assert record.parity is not None
        assert record.program is not None
        if precision == "fp32":
            continue
        assert record.program.operators["cast"] == 2
        assert record.program.largest_half is not None
        assert 0 < record.program.largest_half < 65504
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.4 * sizes["fp32"]


def test_palettes_are_offered_with_their_trouble_named(lived_in, tmp_path):
    record = to_mlpackage(make_network(tiny(lived_in)), tmp_path, precision="palette6")
    assert mlpackage.PALETTE_TROUBLE in record.notes


def test_a_shuffle_that_stays_is_converted(lived_in, tmp_path):
    """SE between concatenation and shuffle keeps the rewrite from absorbing it; coremltools knows no such operator."""
    network = make_network(tiny(lived_in, SqueezeExcite(16), nn.ChannelShuffle(2)))
    record = to_mlpackage(network, tmp_path, precision="fp32")
    assert record.program is not None
    assert record.program.operators["transpose"] == 1


@pytest.mark.parametrize(("said", "target", "version"), [("17", "iOS17", 8), ("ios18", "iOS18", 9)])
def test_newer_systems(lived_in, tmp_path, said, target, version):
    record = to_mlpackage(make_network(tiny(lived_in)), tmp_path, target=said, precision="int8")
    assert record.program is not None
    assert (record.program.target, record.program.specification_version) == (target, version)


def test_raw_logits_and_grayscale(lived_in, tmp_path, monkeypatch):
    model = tiny(lived_in, channels=1)
    network = make_network(model, input_size=(1, SIZE, SIZE), mean=(0.3,), std=(0.2,), labels=None)
    monkeypatch.setattr(Network, "images", lambda self, *, split, limit: _grey(limit))
    record = to_mlpackage(network, tmp_path, softmax=False)
    program = MilProgram.load(tmp_path / record.file)
    assert program.labels is None
    assert not program.ends_in_softmax
    assert [output.name for output in program.description.output] == ["logits"]
    assert record.labels is None
    assert program.image.channels == 1


def _grey(limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    from edge_sk.training.digits import digits

    images, labels = digits("test")
    images = nn.functional.interpolate(images[:limit, None].float() / 255, size=(SIZE, SIZE))
    yield images, labels[:limit]
