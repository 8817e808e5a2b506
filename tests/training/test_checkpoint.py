from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.training import run
from edge_sk.training.distributed import World
from edge_sk.training.plan import start
from edge_sk.training.run import CHECKPOINT, DAMAGED, PREVIOUS, load_checkpoint, save_checkpoint
from recipes.planning import make_plan


def save(folder: Path, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    save_checkpoint(folder, {"step": step, "weights": torch.randn(300, generator=generator), "history": [{"epoch": 1}]})


def loaded_step(folder: Path) -> int:
    loaded = load_checkpoint(folder)
    assert loaded is not None
    state, _ = loaded
    generator = torch.Generator().manual_seed(state["step"])
    assert torch.equal(state["weights"], torch.randn(300, generator=generator))
    return state["step"]


def test_the_newest_is_read_and_the_one_before_is_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
        assert loaded_step(tmp_path) == step
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CHECKPOINT, PREVIOUS])
    (tmp_path / CHECKPOINT).unlink()
    assert loaded_step(tmp_path) == 2


def test_it_is_an_ordinary_torch_file(tmp_path: Path) -> None:
    save(tmp_path, 5)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 5


def test_any_truncation_is_noticed_and_any_flipped_bit_that_matters(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    good_previous = (tmp_path / PREVIOUS).read_bytes()
    rng = random.Random(0)
    for attempt in range(300):
        if attempt % 2:
            damaged = whole[: rng.randrange(len(whole))]
        else:
            position = rng.randrange(len(whole) * 8)
            flipped = bytearray(whole)
            flipped[position // 8] ^= 1 << position % 8
            damaged = bytes(flipped)
        (tmp_path / CHECKPOINT).write_bytes(damaged)
        (tmp_path / PREVIOUS).write_bytes(good_previous)
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        _, warning = loaded
        # A few bits of a zip file mean nothing: a time, a flag. Then the file is still as it was.
        assert loaded_step(tmp_path) == (1 if warning else 2)


def test_a_damaged_file_never_takes_the_place_of_the_good_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / CHECKPOINT).write_bytes(b"PK not a checkpoint")
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    state, warning = loaded
    assert state["step"] == 1
    assert "truncated or was not written by" in str(warning)
    assert (tmp_path / DAMAGED).exists()
    assert not (tmp_path / CHECKPOINT).exists()
    save(tmp_path, 3)
    (tmp_path / CHECKPOINT).write_bytes(b"")
    assert loaded_step(tmp_path) == 1


@pytest.mark.parametrize("moment", ["before reading", "after reading"])
def test_another_process_may_set_the_damaged_file_aside_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / CHECKPOINT).write_bytes(b"PK not a checkpoint")
    read_bytes = Path.read_bytes

    def overtaken(path: Path) -> bytes:
        content = read_bytes(path) if moment == "after reading" else b""
        monkeypatch.undo()
        assert loaded_step(tmp_path) == 1
        assert not (tmp_path / CHECKPOINT).exists()
        return content or read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    assert loaded_step(tmp_path) == 1
    assert read_bytes(tmp_path / DAMAGED) == b"PK not a checkpoint"


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match=r"nothing to resume from: .*checkpoint.pt is truncated"):
        load_checkpoint(tmp_path)


def test_another_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FORMAT", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="has checkpoint format 99, this version of edge_sk reads 2"):
        load_checkpoint(tmp_path)


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
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CHECKPOINT, PREVIOUS])
    assert loaded_step(tmp_path) == 2


def test_what_a_killed_process_left_half_written_is_removed_when_the_run_continues(tmp_path: Path) -> None:
    folder, overrides = tmp_path / "run", ["data.batch_size=64", "data.input_size=32"]
    world = World(torch.device("cpu"))
    start(make_plan("timm:test_resnet", output=str(folder), overrides=overrides), world)
    half = [folder / name for name in (".checkpoint.pt.x2_abc12", ".model.safetensors.12345678", ".edge_sk-17")]
    for path in (*half, folder / ".mine"):
        path.write_bytes(b"half")
    start(make_plan("timm:test_resnet", output=str(folder), overrides=overrides, resume=True), world)
    assert {path.name for path in folder.glob(".*")} == {".mine"}
