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

from edge_sk.errors import script
from edge_sk.export import mlpackage, to_mlpackage
from edge_sk.export.record import Record, record_path
from tests.export.mlpackage.networks import WEIGHTS, contents, make_network, tiny


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


def test_an_older_package_is_replaced(lived_in, tmp_path):
    network = make_network(tiny(lived_in))
    first = to_mlpackage(network, tmp_path, precision="fp32")
    old = contents(tmp_path / first.file)[WEIGHTS]
    with torch.no_grad():
        next(network.model.parameters()).mul_(1.5)
    to_mlpackage(network, tmp_path, precision="fp32")
    assert contents(tmp_path / first.file)[WEIGHTS] != old
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.file, f"{first.file}.json"]
