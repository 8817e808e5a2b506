"""Last step of every export: put a file and its record in the place of older ones, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError
from edge_sk.export.network import Network
from edge_sk.export.record import Record, read_record, record_path
from edge_sk.files import atomic_write, check_output
from edge_sk.manifest import manifest
from edge_sk.profiling import profile
from edge_sk.rewriting import Rewrites


def new_path(network: Network, folder: Path, ending: str, *, replace: bool) -> Path:
    """Where a network's new file goes: ``STEM_ENDING`` in ``folder``, which is made.

    Without ``replace``, a file of that name is replaced only if its record says that it holds the same weights, or
    both are untrained.

    Raises:
        InputError: Such a file holds other weights, or nobody knows which; or nothing can be written into the folder.
    """
    check_output(folder)
    path = folder / f"{network.stem}_{ending}"
    if replace or not os.path.lexists(path):
        return path
    try:
        older = read_record(record_path(path))
    except InputError:
        holds = "has no readable record, which would say whose weights it holds"
    else:
        by_name = not network.trained or older.weights_sha256 is None
        same = older.weights == network.weights if by_name else older.weights_sha256 == network.weights_digest()
        if same and older.arch == network.arch:
            return path
        holds = f"holds other weights ({older.weights}, exported {older.manifest.get('date', 'some time ago')})"
    raise InputError(
        f"{path} {holds} and would be lost: give this export a --name (name=) or another --output, or remove it"
    )


def make_record(
    network: Network, rewrites: Rewrites, *, argv: Sequence[str] | None, notes: Sequence[str] = (), **fields: Any
) -> Record:
    """Describe an exported file.

    Args:
        network: What it was made from.
        rewrites: What :func:`edge_sk.export.prepare.prepare` did.
        argv: The command.
        notes: What was not verified.
        **fields: The other fields of the record.
    """
    cost = profile(network.model, (1, *network.input_size))
    weights = [] if network.trained else ["untrained weights: parity holds for these weights, accuracy means nothing"]
    return Record(
        arch=network.arch,
        weights=network.weights,
        weights_sha256=network.weights_digest(),
        training=network.training,
        num_classes=network.num_classes,
        outputs={name: list(shape) for name, shape in network.outputs.items()},
        input=network.contract,
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        rewrites=[f"{name} x{count}" for name, count in rewrites.items()],
        notes=[*weights, *network.notes, *rewrites.notes(), *notes],
        manifest=manifest(argv),
        **fields,
    )


@contextlib.contextmanager
def new_record(artifact: Path) -> Iterator[Callable[[Record], None]]:
    """Give a function that writes the record of a file.

    The caller replaces the file inside the block, after that call. The older record is removed before, and the new one
    appears after the block: at no moment does a file lie beside another file's record.
    """
    path = record_path(artifact)
    with atomic_write(path) as temporary:

        def write(record: Record) -> None:
            record.keep_measurements(artifact)
            temporary.write_text(record.to_json(), encoding="utf-8")
            path.unlink(missing_ok=True)

        yield write
