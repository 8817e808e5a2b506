"""Packages for Core ML: what is written, what proves it, and that the proof can fail."""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edge_sk
from edge_sk.errors import InputError, script
from edge_sk.export import mlpackage, to_mlpackage
from edge_sk.export.coreml_tools import coremltools
from edge_sk.export.mil import MilProgram
from edge_sk.export.mlpackage import class_labels
from edge_sk.export.mlpackage_check import check_interface, check_operators, prove
from edge_sk.export.network import Network
from edge_sk.export.record import Record, read_record, record_path
from edge_sk.training.digits import CLASSES

SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def _network(model: nn.Module, **fields: Any) -> Network:
    defaults = {
        "arch": "tiny",
        "weights": "random",
        "input_size": (3, SIZE, SIZE),
        "mean": MEAN,
        "std": STD,
        "labels": CLASSES,
    }
    return Network(model=model.eval(), **(defaults | fields))  # type: ignore[arg-type]


def _tiny(lived_in: Callable[[nn.Module], nn.Module], *extra: nn.Module, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return lived_in(
        nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            edge_sk.SelectiveKernel(16, 16, groups=16),
            *extra,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
    )


@pytest.fixture(scope="module")
def network(lived_in) -> Network:
    """A selective-kernel network of the zoo with statistics as after training."""
    torch.manual_seed(0)
    model = lived_in(edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10))
    return _network(model, arch="sk_shufflenetv2_0.5", input_size=(3, 64, 64))


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("exported")
    record = to_mlpackage(network, folder, precision="fp32", argv=["deploy/export.py", "x"])
    return folder / record.file, record


@pytest.fixture(scope="module")
def pictures(network) -> np.ndarray:
    images = next(iter(network.images(split="test", limit=64)))[0]
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _verify(network: Network, package: Path) -> None:
    """What to_mlpackage does with the saved package before it keeps it."""
    program = MilProgram.load(package)
    check_interface(program, network, class_labels(network))
    prove(program, network, "fp32")


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


# What is in the package


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
    assert program.labels == CLASSES
    assert program.answer_names == ("classLabel", "classLabel_probs")
    assert program.ends_in_softmax
    assert program.image is not None
    assert (program.image.name, program.image.channels) == ("image", 3)
    assert program.metadata["edge_sk.mean"] == "0.485,0.456,0.406"
    assert program.metadata["edge_sk.arch"] == "sk_shufflenetv2_0.5"
    assert program.metadata["author"]
    assert program.metadata["license"]
    assert "64x64" in program.descriptions["image"]
    assert set(program.descriptions) == {"image", "classLabel", "classLabel_probs"}
    assert all(program.descriptions.values())
    assert sorted(file.name for file in exported[0].iterdir()) == ["Data", "Manifest.json"]


def test_the_answer_is_the_eager_models(exported, network, pictures):
    program = MilProgram.load(exported[0])
    pixels = torch.from_numpy(pictures[:4]).permute(0, 3, 1, 2) / 255
    normalised = (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        expected = network.model(normalised).softmax(1)
    for picture, probabilities in zip(pictures, expected, strict=False):
        answer = program.predict(picture)
        assert answer["classLabel"] == CLASSES[int(probabilities.argmax())]
        assert list(answer["classLabel_probs"]) == CLASSES
        assert list(answer["classLabel_probs"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_half_and_eight_bits_pass_and_are_smaller(lived_in, tmp_path):
    wide = [nn.Conv2d(16, 256, 1), nn.ReLU(), nn.Conv2d(256, 256, 1), nn.ReLU(), nn.Conv2d(256, 16, 1)]
    network = _network(_tiny(lived_in, *wide))
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
    record = to_mlpackage(_network(_tiny(lived_in)), tmp_path, precision="palette6")
    assert mlpackage.PALETTE_TROUBLE in record.notes


@pytest.mark.parametrize(("target", "version"), [("iOS17", 8), ("iOS18", 9)])
def test_newer_systems(lived_in, tmp_path, target, version):
    record = to_mlpackage(_network(_tiny(lived_in)), tmp_path, target=target, precision="int8")
    assert record.program is not None
    assert (record.program.target, record.program.specification_version) == (target, version)


def test_raw_logits_and_grayscale(lived_in, tmp_path, monkeypatch):
    model = _tiny(lived_in, channels=1)
    network = _network(model, input_size=(1, SIZE, SIZE), mean=(0.3,), std=(0.2,), labels=None)
    monkeypatch.setattr(Network, "images", lambda self, *, split, limit: _grey(limit))
    record = to_mlpackage(network, tmp_path, softmax=False)
    program = MilProgram.load(tmp_path / record.file)
    assert program.labels is None
    assert not program.ends_in_softmax
    assert program.output_names == ["logits"]
    assert record.labels is None
    assert program.image is not None
    assert program.image.channels == 1


def _grey(limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    from edge_sk.training.digits import digits

    images, labels = digits("test")
    images = nn.functional.interpolate(images[:limit, None].float() / 255, size=(SIZE, SIZE))
    yield images, labels[:limit]


# The proof can fail


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
    right = program.answer

    def wrong(features: Any) -> Any:
        answer = right(features)
        return dataclasses.replace(answer, label="8" if answer.label != "8" else "9")

    monkeypatch.setattr(program, "answer", wrong)
    with pytest.raises(InputError, match="the labels are out of order"):
        prove(program, network, "fp32")


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
    program.operations = lambda: collections.Counter(transpose=1, conv=95)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="1 transpose operators where the network has 0"):
        check_operators(program, graph)
    program.operations = lambda: collections.Counter(cast=3)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="3 cast operators where the network has 2"):
        check_operators(program, graph)
    program.max_rank = lambda: 6  # type: ignore[method-assign]
    with pytest.raises(InputError, match="6 axes and Core ML allows 5"):
        check_operators(program, graph)


class Huge(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 256.0 * 256.0 * 2.0**-16  # powers of two: nothing is lost in half precision


def test_a_value_beyond_half_precision_is_refused(lived_in, tmp_path):
    network = _network(_tiny(lived_in, Huge()))
    with pytest.raises(InputError, match=r"a value reaches .* half precision ends at 65504.*export fp32"):
        to_mlpackage(network, tmp_path, precision="fp16")
    assert list(tmp_path.iterdir()) == []
    to_mlpackage(network, tmp_path, precision="fp32")


# Nothing partial


def test_a_new_package_never_lies_beside_the_older_record(lived_in, tmp_path, monkeypatch):
    network = _network(_tiny(lived_in))
    record = to_mlpackage(network, tmp_path, precision="fp32")
    path = record_path(tmp_path / record.file)
    path.write_text("older")
    replace = Path.replace

    def full(self: Path, to: Path) -> Path:
        if to == path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            to_mlpackage(network, tmp_path, precision="fp32")
    assert [file.name for file in tmp_path.iterdir()] == [record.file]
    with monkeypatch.context() as patch:
        patch.setattr(Record, "to_json", lambda self: full(path, path))
        path.write_text("older")
        with pytest.raises(OSError, match="No space"):
            to_mlpackage(network, tmp_path, precision="fp32")
    assert path.read_text() == "older"


@pytest.fixture
def previous(exported, tmp_path) -> Iterator[Path]:
    """A folder that holds an older package; it must be there, whole, after a failure."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copytree(exported[0], folder / "tiny_coreml_fp32.mlpackage")
    before = _contents(folder)
    yield folder
    assert _contents(folder) == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weight.bin"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("moment", ["save", "check", "replace"])
def test_a_failure_at_any_moment_leaves_the_older_package(lived_in, previous, monkeypatch, failure, raised, moment):
    network = _network(_tiny(lived_in))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    if moment == "save":

        def partial(model: Any, path: Path) -> None:
            path.mkdir()
            (path / "half").write_bytes(b"of it")
            raise failure

        monkeypatch.setattr(mlpackage, "_save", partial)
    elif moment == "check":
        monkeypatch.setattr(mlpackage, "prove", fail)
    else:
        rename = Path.rename
        monkeypatch.setattr(
            Path,
            "rename",
            lambda a, b: fail() if a.parent.name.startswith(".tiny") and "previous" not in a.name else rename(a, b),
        )
    with pytest.raises(raised):
        to_mlpackage(network, previous, precision="fp32")
    monkeypatch.undo()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_full_disk_is_one_line_and_leaves_nothing(lived_in, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this container does not allow mounts")

    @script
    def main(argv: Any = None) -> int:
        to_mlpackage(_network(_tiny(lived_in)), disk, precision="fp32")
        return 0

    try:
        assert main() == 1
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search("No space left on device.*free some space", message)


def test_an_older_package_is_replaced(lived_in, tmp_path):
    network = _network(_tiny(lived_in))
    first = to_mlpackage(network, tmp_path, precision="fp32")
    old = _contents(tmp_path / first.file)[WEIGHTS]
    with torch.no_grad():
        next(network.model.parameters()).mul_(1.5)
    to_mlpackage(network, tmp_path, precision="fp32")
    assert _contents(tmp_path / first.file)[WEIGHTS] != old
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.file, f"{first.file}.json"]


# Bad input


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
        to_mlpackage(_network(_tiny(lived_in)), tmp_path, **options)
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
        to_mlpackage(_network(_tiny(lived_in), labels=labels), tmp_path)


def test_an_operator_that_cannot_be_converted_is_named_with_its_module(lived_in, tmp_path):
    network = _network(_tiny(lived_in, nn.Sequential(nn.Conv2d(16, 16, 1), Bessel())))
    with pytest.raises(InputError, match=r"cannot convert aten.special_i0.default of module '4.1' \(Bessel\)"):
        to_mlpackage(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x)


def test_five_channels_are_no_image(lived_in, tmp_path):
    network = _network(_tiny(lived_in, channels=5), input_size=(5, SIZE, SIZE), mean=(0.5,) * 5, std=(0.2,) * 5)
    with pytest.raises(InputError, match="takes 5 channels; a Core ML image has 3"):
        to_mlpackage(network, tmp_path)


def test_without_coremltools_the_extra_is_named(lived_in, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(InputError, match=r'Core ML export needs coremltools.*pip install "edge-sk\[deploy\]"'):
        to_mlpackage(_network(_tiny(lived_in)), tmp_path)


def test_an_unwritable_output_is_said_before_the_work(lived_in, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write into --output"):
        to_mlpackage(_network(_tiny(lived_in)), tmp_path / "file")
