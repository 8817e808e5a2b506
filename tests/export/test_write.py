"""Which files an export may replace: those that hold the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from edge_sk.errors import InputError
from edge_sk.export.network import UNTRAINED, Network
from edge_sk.export.record import write_record
from edge_sk.export.write import new_path
from tests.export.test_record import _record

ENDING = "xnnpack_fp32.pte"


def _network(**fields: str) -> Network:
    torch.manual_seed(0)
    about: dict = {"arch": "net", "weights": "seed0", "input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Network(model=nn.Linear(2, 2), **(about | fields))


def _other(network: Network) -> Network:
    """A run in another folder of the same name."""
    return dataclasses.replace(network, model=nn.Linear(2, 2))


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file of the network with its record."""
    path = new_path(_network(), tmp_path / "out", ENDING, replace=False)
    path.write_text("program")
    write_record(path, _record(arch="net", weights="seed0", weights_sha256=_network().weights_digest()))
    return path


def _replaces(network: Network, path: Path) -> bool:
    assert new_path(network, path.parent, ENDING, replace=True) == path
    try:
        return new_path(network, path.parent, ENDING, replace=False) == path
    except InputError:
        return False


def test_the_same_weights_replace_their_file_and_no_others(taken: Path) -> None:
    network = _network()
    assert _replaces(network, taken)
    assert _replaces(dataclasses.replace(network, weights="a/seed0"), taken)  # the folder moved
    assert not _replaces(_other(network), taken)
    assert not _replaces(dataclasses.replace(network, arch="net@act=relu", name="net"), taken)
    assert new_path(dataclasses.replace(_other(network), name="b 1"), taken.parent, ENDING, replace=False).name == (
        f"b-1_{ENDING}"
    )
    with pytest.raises(InputError, match=r"holds other weights \(seed0, .*would be lost: give this export a --name"):
        new_path(_other(network), taken.parent, ENDING, replace=False)
    taken.unlink()
    assert _replaces(_other(network), taken)


def test_untrained_networks_have_nothing_to_lose(taken: Path) -> None:
    network = _network(weights=UNTRAINED)
    assert not _replaces(network, taken)
    write_record(taken, _record(arch="net", weights=UNTRAINED, weights_sha256="of another version's start"))
    assert _replaces(network, taken)
    assert not _replaces(_network(), taken)


@pytest.mark.parametrize("record", [None, "{"])
def test_a_file_that_nobody_knows_stays(taken: Path, record: str | None) -> None:
    path = Path(f"{taken}.json")
    path.unlink() if record is None else path.write_text(record)
    assert not _replaces(_network(), taken)


def test_records_without_a_digest_go_by_the_name_of_the_run(taken: Path) -> None:
    write_record(taken, _record(arch="net", weights="seed0"))
    assert _replaces(_other(_network()), taken)
    assert not _replaces(_network(weights="seed1"), taken)
