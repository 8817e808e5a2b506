"""A package and its record appear whole or not at all, and an older package stays until then."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.mac import measuring
from deploy.mac.check import main as check
from deploy.mac.compute_plan import main as compute_plan
from deploy.mac.latency import main as latency
from edge_sk.errors import InputError, script
from edge_sk.export import to_mlpackage
from edge_sk.export.coreml import coremltools, mlpackage
from edge_sk.export.coreml.check import INTERPRETER, INTERPRETER_NOTE
from edge_sk.export.record import Accuracy, Record, record_of, record_path, write_record
from edge_sk.files import file_digest
from tests.export.coreml.networks import WEIGHTS, contents, make_network, tiny
from tests.export.test_record import measured


def test_a_new_package_never_lies_beside_the_older_record(lived_in, tmp_path, monkeypatch):
    network = make_network(tiny(lived_in))
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
            to_mlpackage(network, tmp_path, precision="fp32", replace=True)
    assert [file.name for file in tmp_path.iterdir()] == [record.file]
    with monkeypatch.context() as patch:
        patch.setattr(Record, "to_json", lambda self: full(path, path))
        path.write_text("older")
        with pytest.raises(OSError, match="No space"):
            to_mlpackage(network, tmp_path, precision="fp32", replace=True)
    assert path.read_text() == "older"


@pytest.fixture
def previous(exported, tmp_path) -> Iterator[Path]:
    """A folder that holds an older package; it must be there, whole, after a failure."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copytree(exported[0], folder / "tiny_coreml_fp32.mlpackage")
    before = contents(folder)
    yield folder
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weight.bin"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("moment", ["save", "check", "replace"])
def test_a_failure_at_any_moment_leaves_the_older_package(lived_in, previous, monkeypatch, failure, raised, moment):
    network = make_network(tiny(lived_in))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    if moment == "save":

        def partial(model: Any, path: Path) -> None:
            path.mkdir()
            (path / "half").write_bytes(b"of it")
            raise failure

        monkeypatch.setattr(mlpackage, "_save", partial)
    elif moment == "check":
        monkeypatch.setattr(mlpackage, "check_outputs", fail)
    else:
        rename = Path.rename
        monkeypatch.setattr(
            Path,
            "rename",
            lambda a, b: fail() if a.parent.name.startswith(".tiny") and "previous" not in a.name else rename(a, b),
        )
    with pytest.raises(raised):
        to_mlpackage(network, previous, precision="fp32", replace=True)
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
        to_mlpackage(make_network(tiny(lived_in)), disk, precision="fp32")
        return 0

    try:
        assert main() == 1
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search("No space left on device.*free some space", message)


def test_another_export_is_the_same_package_and_keeps_what_devices_measured(lived_in, tmp_path):
    network = make_network(tiny(lived_in), training="not finished: 1 of 3 epochs")
    record = to_mlpackage(network, tmp_path, precision="fp32")
    package = tmp_path / record.file
    assert record.sha256 == file_digest(package)
    assert record.training == "not finished: 1 of 3 epochs"
    before = contents(package)
    (model,) = (content for name, content in before.items() if name.endswith(".mlmodel"))
    # Neither the day nor this process's order of map entries is in the file.
    spec = coremltools().proto.Model_pb2.Model.FromString(model)
    assert not [key for key in spec.description.metadata.userDefined if "date" in key]
    assert spec.SerializeToString(deterministic=True) == model
    record.add_latency(measured(5.0, "an iPhone", "2026-01-01"))
    assert record.program is not None
    record.program.compute_units = {"a Mac, all": {"CPU": 3}}
    assert record.parity is not None
    # What deploy/mac/check.py writes.
    record.parity.runtime = "Core ML on macOS 15.0, all compute units"
    record.accuracy = Accuracy(top1=0.5, eager_top1=0.5, images=64, data="digits")
    record.notes.remove(INTERPRETER_NOTE)
    write_record(package, record)
    again = to_mlpackage(network, tmp_path, precision="fp32")
    assert contents(package) == before
    assert record_of(package) == again
    assert again.latency == record.latency
    assert (again.parity, again.accuracy, again.notes) == (record.parity, record.accuracy, record.notes)
    assert again.program is not None
    assert again.program.compute_units == record.program.compute_units
    with torch.no_grad():
        next(network.model.parameters()).mul_(1.5)
    with pytest.raises(InputError, match=r"tiny_coreml_fp32.mlpackage holds other weights \(random, exported 2"):
        to_mlpackage(network, tmp_path, precision="fp32")
    assert contents(package) == before
    other = to_mlpackage(network, tmp_path, precision="fp32", replace=True)
    assert other.sha256 != again.sha256
    assert other.latency == []
    assert other.parity is not None
    assert other.parity.runtime == INTERPRETER
    assert INTERPRETER_NOTE in other.notes
    assert other.program is not None
    assert other.program.compute_units is None


@pytest.mark.parametrize("damage", ["weights", "model", "manifest", "file missing", "file added"])
def test_a_changed_package_beside_its_record_is_noticed(exported, tmp_path, monkeypatch, capsys, damage):
    package = tmp_path / exported[0].name
    shutil.copytree(exported[0], package)
    write_record(package, exported[1])
    (package / ".DS_Store").write_bytes(b"macOS was here")
    assert record_of(package) == exported[1]
    ending = {"weights": "weight.bin", "model": ".mlmodel", "manifest": "Manifest.json"}.get(damage, "weight.bin")
    (file,) = (path for path in package.rglob("*") if path.name.endswith(ending))
    if damage == "file missing":
        file.unlink()
    elif damage == "file added":
        (package / "more").write_bytes(b"")
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{package.name} is not the file that {package.name}\.json describes"):
        record_of(package)
    monkeypatch.setattr(measuring, "require_macos", lambda what: None)
    for script_of_mac, more in ((check, ["--arch", "sk_shufflenetv2_0.5"]), (compute_plan, []), (latency, [])):
        assert script_of_mac([str(package), *more]) == 2
        assert "is damaged, or another one" in capsys.readouterr().err


def test_an_older_package_is_replaced(lived_in, tmp_path):
    network = make_network(tiny(lived_in))
    first = to_mlpackage(network, tmp_path, precision="fp32")
    old = contents(tmp_path / first.file)[WEIGHTS]
    with torch.no_grad():
        next(network.model.parameters()).mul_(1.5)
    to_mlpackage(network, tmp_path, precision="fp32", replace=True)
    assert contents(tmp_path / first.file)[WEIGHTS] != old
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.file, f"{first.file}.json"]
