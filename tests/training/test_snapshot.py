from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.training import snapshot
from edge_sk.training.snapshot import CURRENT, DAMAGED, PREVIOUS, load_snapshot, save_snapshot


def save(folder: Path, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    save_snapshot(folder, {"step": step, "weights": torch.randn(300, generator=generator), "history": [{"epoch": 1}]})


def loaded_step(folder: Path) -> int:
    loaded = load_snapshot(folder)
    assert loaded is not None
    generator = torch.Generator().manual_seed(loaded.state["step"])
    assert torch.equal(loaded.state["weights"], torch.randn(300, generator=generator))
    return loaded.state["step"]


def test_the_newest_is_read_and_the_one_before_is_kept(tmp_path: Path) -> None:
    assert load_snapshot(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
        assert loaded_step(tmp_path) == step
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CURRENT, PREVIOUS])
    (tmp_path / CURRENT).unlink()
    assert loaded_step(tmp_path) == 2


def test_it_is_an_ordinary_torch_file(tmp_path: Path) -> None:
    save(tmp_path, 5)
    assert torch.load(tmp_path / CURRENT, weights_only=True)["step"] == 5
    assert zipfile.ZipFile(tmp_path / CURRENT).comment.startswith(b"edge_sk sha256 ")


def test_any_flipped_bit_and_any_truncation_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    whole = (tmp_path / CURRENT).read_bytes()
    good_previous = (tmp_path / PREVIOUS).read_bytes()
    rng = random.Random(0)
    for attempt in range(120):
        if attempt % 2:
            damaged = whole[: rng.randrange(len(whole))]
        else:
            position = rng.randrange(len(whole) * 8)
            flipped = bytearray(whole)
            flipped[position // 8] ^= 1 << position % 8
            damaged = bytes(flipped)
        (tmp_path / CURRENT).write_bytes(damaged)
        (tmp_path / PREVIOUS).write_bytes(good_previous)
        loaded = load_snapshot(tmp_path)
        assert loaded is not None
        assert loaded.state["step"] == 1
        assert loaded.warning is not None


def test_a_damaged_file_never_takes_the_place_of_the_good_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / CURRENT).write_bytes(b"PK not a checkpoint")
    loaded = load_snapshot(tmp_path)
    assert loaded is not None
    assert loaded.state["step"] == 1
    assert "truncated or was not written by" in str(loaded.warning)
    assert (tmp_path / DAMAGED).exists()
    assert not (tmp_path / CURRENT).exists()
    save(tmp_path, 3)
    (tmp_path / CURRENT).write_bytes(b"")
    assert loaded_step(tmp_path) == 1


@pytest.mark.parametrize("moment", ["before reading", "after reading"])
def test_another_process_may_set_the_damaged_file_aside_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / CURRENT).write_bytes(b"PK not a checkpoint")
    read_bytes = Path.read_bytes

    def overtaken(path: Path) -> bytes:
        content = read_bytes(path) if moment == "after reading" else b""
        monkeypatch.undo()
        assert loaded_step(tmp_path) == 1
        assert not (tmp_path / CURRENT).exists()
        return content or read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    assert loaded_step(tmp_path) == 1
    assert read_bytes(tmp_path / DAMAGED) == b"PK not a checkpoint"


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    (tmp_path / CURRENT).write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match=r"nothing to resume from: .*checkpoint.pt is truncated"):
        load_snapshot(tmp_path)


def test_another_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "FORMAT", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="has checkpoint format 99, this version of edge_sk reads 1"):
        load_snapshot(tmp_path)


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_failing_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CURRENT, PREVIOUS])
    assert loaded_step(tmp_path) == 2
