"""Networks that return maps, tuples, lists and dictionaries: every output is proven, by its name."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage, to_pte
from edge_sk.export.coreml import mlpackage
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.executorch import executorch, pte
from edge_sk.export.executorch.pte import run_outputs
from edge_sk.export.network import UNTRAINED, Network, from_arch, with_statistics
from edge_sk.export.prepare import reference
from edge_sk.export.record import read_record, record_path
from edge_sk.export.report.marks import parity_mark
from edge_sk.running import named_tensors

SIZE = 32
STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "segmentation": lambda mask, _: OrderedDict(out=mask),
    "two heads": lambda mask, features: {"out": mask, "aux": [features, (features.mean((2, 3)),)]},
    "features": lambda _, features: [features, features.mean((2, 3), keepdim=True)],
    "map": lambda mask, _: mask,
}
NAMES = {
    "segmentation": {"out": (1, 3, SIZE, SIZE)},
    "two heads": {"out": (1, 3, SIZE, SIZE), "aux_0": (1, 16, 16, 16), "aux_1_0": (1, 16)},
    "features": {"output_0": (1, 16, 16, 16), "output_1": (1, 16, 1, 1)},
    "map": {"output": (1, 3, SIZE, SIZE)},
}


class Heads(nn.Module):
    """A selective kernel, and behind it a mask of three classes and features."""

    def __init__(self, structure: str) -> None:
        super().__init__()
        self.structure = structure
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.unit = edge_sk.SelectiveKernel(16, 16, groups=16)
        self.mask = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        features = self.unit(self.stem(x))
        mask = nn.functional.interpolate(self.mask(features), size=x.shape[2:], mode="bilinear", align_corners=False)
        return STRUCTURES[self.structure](mask, features)


@pytest.fixture
def make(lived_in: Callable[[nn.Module], nn.Module]) -> Callable[[str], Network]:
    def build(structure: str) -> Network:
        torch.manual_seed(0)
        return Network(
            arch="heads", model=lived_in(Heads(structure)), weights="random", input_size=(3, SIZE, SIZE),
            mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=1.0, data="digits",
        )  # fmt: skip

    return build


def expected(network: Network, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [*named_tensors(reference(network)(images)).values()]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_output_is_written_and_proven(structure: str, make: Callable[[str], Network], tmp_path: Path) -> None:
    network, names = make(structure), NAMES[structure]
    assert network.outputs == names
    chooses = structure != "features"
    assert (network.is_classifier, network.num_classes) == (False, 3 if chooses else None)
    images = torch.cat([batch for batch, _ in network.images(split="test", limit=3)])
    images = (images * 255).round() / 255
    for record in (to_pte(network, tmp_path), to_mlpackage(network, tmp_path, precision="fp32")):
        assert read_record(record_path(tmp_path / record.file)) == record
        assert record.outputs == {name: list(shape) for name, shape in names.items()}
        assert (record.labels, record.softmax, record.accuracy) == (None, False, None)
        proof = record.parity
        assert proof is not None
        assert (proof.relative or 0.0) < 1e-4
        assert proof.top1_agreement is None if not chooses else (proof.top1_agreement or 0.0) > 0.999
        if len(names) > 1:
            assert [*proof.outputs] == [*names]
            assert proof.sqnr_db == min(one.sqnr_db or 0.0 for one in proof.outputs.values())
            assert proof.outputs[[*names][1]].top1_agreement is None
        assert parity_mark(record).symbol == "✓"
        path = tmp_path / record.file
        if record.format == "pte":
            got = run_outputs(path.read_bytes(), images)
            program = executorch("runtime").Runtime.get().load_program(path.read_bytes())
            assert program.load_method("outputs").execute([]) == ["\n".join(names)]
        else:
            program = MilProgram.load(path)
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            rows = [program.predict(picture).outputs for picture in pixels]
            assert {*rows[0]} == {*names}
            got = [torch.cat([torch.from_numpy(row[name]) for row in rows]) for name in names]
        for ours, theirs in zip(got, expected(network, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [pte, mlpackage])
def test_one_wrong_output_stops_the_export(
    form: Any, make: Callable[[str], Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = form.prepare

    class Wrong(nn.Module):
        def forward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (*outputs[:2], outputs[2] + outputs[2])

    def wrong(network: Network, **options: Any) -> Any:
        model, rewrites = original(network, **options)
        return nn.Sequential(model, Wrong()).eval(), rewrites

    monkeypatch.setattr(form, "prepare", wrong)
    export: Any = to_pte if form is pte else to_mlpackage
    with pytest.raises(InputError, match=r"\(aux_1_0\) does not compute what the model computes"):
        export(make("two heads"), tmp_path, precision="fp32")
    assert [*tmp_path.iterdir()] == []


def test_only_a_classifier_has_a_softmax(make: Callable[[str], Network], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heads is no classifier \(its outputs: out \(1, 3, 32, 32\)\): leave out"):
        to_pte(make("segmentation"), tmp_path, softmax=True)


class _Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"classes": self.conv(x).argmax(1)}


def test_outputs_of_whole_numbers_are_refused(make: Callable[[str], Network], tmp_path: Path) -> None:
    network = Network(
        arch="whole", model=_Whole(), weights="random", input_size=(3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3,
        data="digits",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"whole returns {'classes': 'torch.int64'}: a file's outputs are floating"):
        to_pte(network, tmp_path)


class RawHeads(nn.Module):
    """torchvision's detector without its anchors, which are the application's: boxes and classes of every anchor."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head([*self.backbone(x).values()])


def detector() -> nn.Module:
    return RawHeads(torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "sites"),
    [
        (lambda: edge_sk.create_model("torchvision:lraspp_mobilenet_v3_large"), 12),
        (lambda: edge_sk.create_model("torchvision:deeplabv3_mobilenet_v3_large"), 12),
        (detector, 31),
    ],
)
def test_grafts_of_tasks_keep_every_output(
    build: Callable[[], nn.Module], sites: int, lived_in: Callable[[nn.Module], nn.Module]
) -> None:
    network = lived_in(build())
    grafted, report = edge_sk.graft(network, input_size=(3, 96, 96))
    assert len(report.replaced) == sites
    with torch.no_grad():
        x = torch.randn(2, 3, 96, 96)
        for ours, theirs in zip(named_tensors(grafted(x)).values(), named_tensors(network(x)).values(), strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.slow
def test_a_detectors_raw_heads(tmp_path: Path) -> None:
    network = Network(
        arch="ssdlite320_mobilenet_v3_large", model=detector().eval(), weights=UNTRAINED, input_size=(3, 160, 160),
        mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0,
    )  # fmt: skip
    network = with_statistics(network)
    for record in (to_pte(network, tmp_path, allow_fallback=True), to_mlpackage(network, tmp_path, precision="fp32")):
        assert {name: len(shape) for name, shape in record.outputs.items()} == {"bbox_regression": 3, "cls_logits": 3}
        assert record.parity is not None
        assert {*record.parity.outputs} == {*record.outputs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "outputs"),
    [
        ("timm:mobilenetv2_050@features_only=true", 5),
        ("torchvision:lraspp_mobilenet_v3_large@kernels=auto", 1),
        ("torchvision:deeplabv3_mobilenet_v3_large", 1),
    ],
)
def test_networks_of_libraries(arch: str, outputs: int, tmp_path: Path) -> None:
    network = dataclasses.replace(from_arch(arch), input_size=(3, 96, 96))
    assert len(network.outputs) == outputs
    for record in (to_pte(network, tmp_path, allow_fallback=True), to_mlpackage(network, tmp_path, precision="fp32")):
        assert record.parity is not None
