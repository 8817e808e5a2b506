"""The SKNet paper's tables with our count beside every figure.

python recipes/paper_tables.py                    # Tables 1 to 7 and S9, as text
python recipes/paper_tables.py --tables 4 6       # some of them
python recipes/paper_tables.py --json             # as data
python recipes/paper_tables.py --write            # renew paper_tables.md and the other files made here

Li et al., *Selective Kernel Networks*, CVPR 2019, https://arxiv.org/abs/1903.06586. Error rates are always the paper's;
parameters and MACs are ours, counted by ``edge_sk.profile`` on the network that ``edge_sk.create_model`` builds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge_sk
from edge_sk.errors import InputError, script
from edge_sk.files import atomic_write
from edge_sk.manifest import manifest

if TYPE_CHECKING:
    from torch import nn

    from edge_sk.profiling import Profile

HERE = Path(__file__).resolve().parent
PARAMS_TOLERANCE = 1.0  # per cent; a larger difference needs a note
MACS_TOLERANCE = 2.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table of the paper; its figures are text, so that 25.0 stays 25.0.

    Args:
        name: As the paper calls it.
        arch: What ``create_model`` is given; ``None`` where we cannot build it (``note`` says why).
        params: The paper's parameters in millions.
        macs: The paper's "FLOPs" (multiply-accumulates), in the table's unit.
        errors: The paper's error rates in per cent, in the order of the table's columns.
        note: Why we differ, or what to know.
        size: Side of the image; ``None`` takes the network's.
        recalled: Figures quoted from memory that no source at hand confirms: ``params``, ``macs`` or an error column.
        build: Builds a network that has no name; ``arch`` then describes it.
    """

    name: str
    arch: str | None
    params: str | None = None
    macs: str | None = None
    errors: tuple[str | None, ...] = ()
    note: str = ""
    size: int | None = None
    recalled: tuple[str, ...] = ()
    build: Callable[[], nn.Module] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Args:
        key: Its number.
        title: What it shows.
        errors: Names of its error columns.
        rows: Its rows.
        unit: ``G`` or ``M`` MACs.
        note: What holds for all rows.
    """

    key: str
    title: str
    errors: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "G"
    note: str = ""


def _densenet(growth_rate: int, block_config: tuple[int, ...]) -> nn.Module:
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=growth_rate, block_config=block_config)


NOT_IN_TIMM = "Not built: timm has no such network."
ROUNDED = "The published figure has two digits; ours rounds to it."
SHUFFLE_BASE = (
    "The author's own baseline is not the published ShuffleNetV2: its recalled figures show more parameters with fewer "
    "MACs. Compare the differences between rows, below."
)
SHUFFLE_SE = (
    "Where SE goes and its reduction are not stated; ours is the author's released file (r = 16, on the output of the "
    "unit), which is smaller. See also the row of the baseline."
)
SHUFFLE_SK = (
    "Inherits the baseline's difference. What SK adds agrees: parameters as they are, MACs with elementwise work, "
    "see below."
)
TRUNCATED = (
    "The paper's parameters equal ours with the decimals cut off ({ours} M); leaving out batch norm (0.06 M) or the "
    "classifier (1.5 M) does not give them."
)
WIDER = (
    "Our reading: every width after the stem x 17/16 (34 groups). No network with 32 groups and uniformly wider "
    "stages has both figures."
)
DEEPER = "Our reading: layers 3, 4, 8, 3. Two more blocks in stage 3; in any other stage the parameters do not fit."

TABLES = (
    Table(
        "1",
        "The three networks with 50 layers",
        (),
        (
            Row("ResNeXt-50 (32x4d)", "resnext50", "25.0", "4.24"),
            Row("SENet-50", "senet50", "27.7", "4.25"),
            Row("SKNet-50", "sknet50", "27.5", "4.47"),
        ),
    ),
    Table(
        "2",
        "ImageNet, single crop",
        ("224", "320"),
        (
            Row("ResNeXt-50", "resnext50", "25.0", "4.24", ("22.23", "21.05")),
            Row(
                "AttentionNeXt-56",
                None,
                "31.9",
                "6.32",
                ("21.76", None),
                "Not built: neither timm nor torchvision has it.",
            ),
            Row(
                "InceptionV3",
                "torchvision:inception_v3@init_weights=false",
                "27.1",
                "5.73",
                (None, "21.20"),
                "At 299x299, with the auxiliary classifier, which the paper's parameters include.",
                size=299,
            ),
            Row("ResNeXt-50 + BAM", "resnext50_bam", "25.4", "4.31", ("21.70", "20.15")),
            Row("ResNeXt-50 + CBAM", "resnext50_cbam", "27.7", "4.25", ("21.40", "20.38")),
            Row("SENet-50", "senet50", "27.7", "4.25", ("21.12", "19.71")),
            Row("SKNet-50", "sknet50", "27.5", "4.47", ("20.79", "19.32")),
            Row("ResNeXt-101", "resnext101", "44.3", "7.99", ("21.11", "19.86")),
            Row(
                "Attention-92",
                None,
                "51.3",
                "10.43",
                (None, "19.50"),
                "Not built: neither timm nor torchvision has it.",
            ),
            Row("DPN-92", "timm:dpn92", "37.7", "6.50", ("20.70", "19.30"), size=224),
            Row("DPN-98", "timm:dpn98", "61.6", "11.70", ("20.20", "18.90"), size=224),
            Row(
                "InceptionV4",
                "timm:inception_v4",
                "42.0",
                "12.31",
                (None, "20.00"),
                "At 299x299. " + TRUNCATED.format(ours="42.68"),
                size=299,
            ),
            Row(
                "Inception-ResNetV2",
                "timm:inception_resnet_v2",
                "55.0",
                "13.22",
                (None, "19.90"),
                "At 299x299. " + TRUNCATED.format(ours="55.84"),
                size=299,
            ),
            Row("ResNeXt-101 + BAM", "resnext101_bam", "44.6", "8.05", ("20.67", "19.15")),
            Row("ResNeXt-101 + CBAM", "resnext101_cbam", "49.2", "8.00", ("20.60", "19.42")),
            Row("SENet-101", "senet101", "49.2", "8.00", ("20.58", "18.61")),
            Row("SKNet-101", "sknet101", "48.9", "8.46", ("20.19", "18.40")),
        ),
    ),
    Table(
        "3",
        "Other uses of the same budget",
        ("224",),
        (
            Row("ResNeXt-50 (32x4d)", "resnext50", "25.0", "4.24", ("22.23",)),
            Row("SKNet-50", "sknet50", "27.5", "4.47", ("20.79",)),
            Row("ResNeXt-50, wider", "resnext50_wider", "28.1", "4.74", ("22.13",), WIDER),
            Row("ResNeXt-56, deeper", "resnext56", "27.3", "4.67", ("22.04",), DEEPER),
            Row("ResNeXt-50 (36x4d)", "resnext50_36x4d", "27.6", "4.70", ("22.00",)),
        ),
    ),
    Table(
        "4",
        "ShuffleNetV2 with SE and SK",
        ("224",),
        (
            Row("ShuffleNetV2 0.5x", "shufflenetv2_0.5", "1.4", "41", ("39.70",), ROUNDED),
            Row(
                "ShuffleNetV2 0.5x (the author's)",
                "shufflenetv2_0.5",
                "1.40",
                "40.39",
                ("38.41",),
                SHUFFLE_BASE,
                recalled=("params", "macs", "224"),
            ),
            Row(
                "ShuffleNetV2 0.5x + SE",
                "se_shufflenetv2_0.5",
                "1.56",
                "40.85",
                ("36.34",),
                SHUFFLE_SE,
                recalled=("params", "macs", "224"),
            ),
            Row(
                "ShuffleNetV2 0.5x + SK",
                "sk_shufflenetv2_0.5",
                "1.48",
                "42.58",
                ("35.35",),
                SHUFFLE_SK,
                recalled=("params", "macs", "224"),
            ),
            Row("ShuffleNetV2 1.0x", "shufflenetv2_1.0", "2.3", "146", ("30.60",)),
            Row(
                "ShuffleNetV2 1.0x (the author's)",
                "shufflenetv2_1.0",
                "2.45",
                "140.35",
                ("30.57",),
                SHUFFLE_BASE,
                recalled=("params", "macs"),
            ),
            Row(
                "ShuffleNetV2 1.0x + SE",
                "se_shufflenetv2_1.0",
                "2.66",
                "141.73",
                ("29.47",),
                SHUFFLE_SE,
                recalled=("params", "224"),
            ),
            Row(
                "ShuffleNetV2 1.0x + SK",
                "sk_shufflenetv2_1.0",
                "2.63",
                "145.66",
                ("28.36",),
                SHUFFLE_SK,
                recalled=("params",),
            ),
        ),
        unit="M",
        note="The first row of each width is what the ShuffleNetV2 paper published.",
    ),
    Table(
        "5",
        "CIFAR-10 and CIFAR-100",
        ("C10", "C100"),
        (
            Row(
                "ResNeXt-29, 16x32d",
                "resnext29_16x32d",
                "25.2",
                None,
                ("3.87", "18.56"),
                recalled=("params", "C10", "C100"),
            ),
            Row("ResNeXt-29, 8x64d", "resnext29_8x64d", "34.4", None, ("3.65", "17.77"), recalled=("C10",)),
            Row("ResNeXt-29, 16x64d", "resnext29_16x64d", "68.1", None, ("3.58", "17.31"), recalled=("C10", "C100")),
            Row(
                "SENet-29",
                "senet29",
                "35.0",
                None,
                ("3.68", "17.78"),
                "SE on the 8x64d network: on 16x32d, which the paper's text names, it would have 25.8 M.",
                recalled=("C10",),
            ),
            Row(
                "SKNet-29",
                "sknet29",
                "27.7",
                "4.2",
                ("3.47", "17.33"),
                "Branches 1x1 and 3x3, G = 16, r = 32: the setting that has both figures. GFLOPs as cited elsewhere.",
                recalled=("C10",),
            ),
        ),
        note="Counted with ten classes at 32x32; a hundred classes add 0.09 M.",
    ),
    Table(
        "6",
        "SKNet-50, the second branch varied (the first is 3x3, G = 32)",
        ("224",),
        (
            Row("3x3, D = 3, G = 32", "sknet50@kernels=3+3d3", "27.5", "4.47", ("20.97",)),
            Row("3x3, D = 2, G = 32", "sknet50@kernels=3+3d2", "27.5", "4.47", ("20.79",)),
            Row("3x3, D = 1, G = 32", "sknet50@kernels=3+3", "27.5", "4.47", ("20.91",)),
            Row("5x5, D = 1, G = 64", "sknet50@kernels=3+5g64", "28.1", "4.56", ("20.80",)),
            Row("7x7, D = 1, G = 128", "sknet50@kernels=3+7g128", "28.1", "4.55", ("21.18",)),
        ),
    ),
    Table(
        "7",
        "SKNet-50, combinations of kernels (K3: 3x3; K5, K7: 3x3 of dilation 2, 3)",
        ("224",),
        (
            Row("K3", "sknet50@kernels=3,select=false", "25.0", "4.24", ("22.23",)),
            Row("K5", "sknet50@kernels=3d2,select=false", "25.0", "4.24", ("25.14",)),
            Row("K7", "sknet50@kernels=3d3,select=false", "25.0", "4.24", ("25.51",)),
            Row("K3 + K5, sum", "sknet50@kernels=3+3d2,select=false", "26.5", "4.46", ("21.76",)),
            Row("K3 + K5, SK", "sknet50@kernels=3+3d2", "27.5", "4.47", ("20.79",)),
            Row("K3 + K7, sum", "sknet50@kernels=3+3d3,select=false", "26.5", "4.46", ("21.82",)),
            Row("K3 + K7, SK", "sknet50@kernels=3+3d3", "27.5", "4.47", ("20.97",)),
            Row("K5 + K7, sum", "sknet50@kernels=3d2+3d3,select=false", "26.5", "4.46", ("23.64",)),
            Row("K5 + K7, SK", "sknet50@kernels=3d2+3d3", "27.5", "4.47", ("23.09",)),
            Row("K3 + K5 + K7, sum", "sknet50@kernels=3+3d2+3d3,select=false", "28.0", "4.69", ("21.47",)),
            Row("K3 + K5 + K7, SK", "sknet50@kernels=3+3d2+3d3", "29.3", "4.70", ("20.76",)),
        ),
    ),
    Table(
        "S9",
        "ImageNet, parameters against error",
        ("224",),
        (
            Row("ResNet-50", "timm:resnet50", "25.56", None, ("23.9",)),
            Row("ResNet-101", "timm:resnet101", "44.55", None, ("22.6",)),
            Row("ResNet-152", "timm:resnet152", "60.19", None, ("21.7",)),
            Row("DenseNet-169 (k = 32)", "timm:densenet169", "14.15", None, ("23.8",)),
            Row("DenseNet-201 (k = 32)", "timm:densenet201", "20.01", None, ("22.6",)),
            Row(
                "DenseNet-264 (k = 32)",
                "timm's DenseNet class, blocks 6, 12, 64, 48",
                "33.34",
                None,
                ("22.2",),
                build=functools.partial(_densenet, 32, (6, 12, 64, 48)),
            ),
            Row(
                "DenseNet-232 (k = 48)",
                "timm's DenseNet class, blocks 6, 12, 48, 48",
                "55.80",
                None,
                ("21.3",),
                "Our reading of 232 layers: how they divide into blocks is not published at hand.",
                build=functools.partial(_densenet, 48, (6, 12, 48, 48)),
            ),
            Row("ResNeXt-50", "resnext50", "25.00", None, ("22.2",)),
            Row("ResNeXt-101", "resnext101", "44.30", None, ("21.2",)),
            Row("DPN-68", "timm:dpn68", "12.61", None, ("23.7",), size=224),
            Row("DPN-92", "timm:dpn92", "37.67", None, ("20.7",), size=224),
            Row("DPN-98", "timm:dpn98", "61.57", None, ("20.2",), size=224),
            Row("SENet-50", "senet50", "27.7", None, ("21.12",)),
            Row("SENet-101", "senet101", "49.2", None, ("20.58",)),
            Row("SKNet-26", "sknet26", "16.8", None, ("22.74",)),
            Row("SKNet-50", "sknet50", "27.5", None, ("20.79",)),
            Row("SKNet-101", "sknet101", "48.9", None, ("20.19",)),
        ),
        note="The paper gives no FLOPs here.",
    ),
)


@functools.cache
def _profile(arch: str, size: int | None, build: Callable[[], nn.Module] | None) -> Profile:
    model = build() if build else edge_sk.create_model(arch)
    return edge_sk.profile(model, size)


def count(row: Row) -> Profile | None:
    """Our count of a row; ``None`` where we cannot build it."""
    return None if row.arch is None else _profile(row.arch, row.size, row.build)


def _counted(row: Row) -> Profile:
    ours = count(row)
    assert ours is not None, row.name
    return ours


def _float(figure: str | None) -> float | None:
    return None if figure is None else float(figure)


def _off(ours: float, paper: str | None) -> float | None:
    return None if paper is None else round(100 * (ours / float(paper) - 1), 2)


def compute(table: Table) -> dict[str, Any]:
    """One table as data: what the paper says, what we count, the difference in per cent."""
    scale = {"G": 1e9, "M": 1e6}[table.unit]
    rows = []
    for row in table.rows:
        ours = count(row)
        rows.append(
            {
                "name": row.name,
                "arch": row.arch,
                "paper": {
                    "params_m": _float(row.params),
                    f"{table.unit.lower()}macs": _float(row.macs),
                    "top1_error_pct": dict(zip(table.errors, map(_float, row.errors), strict=True)),
                    "recalled": list(row.recalled),
                },
                "ours": None
                if ours is None
                else {
                    "params_m": round(ours.params / 1e6, 4),
                    f"{table.unit.lower()}macs": round(ours.macs / scale, 4),
                    "input_size": list(ours.input_size[1:]),
                },
                "difference_pct": None
                if ours is None
                else {
                    "params": _off(ours.params / 1e6, row.params),
                    "macs": _off(ours.macs / scale, row.macs),
                },
                "note": row.note,
            }
        )
    return {
        "table": table.key,
        "title": table.title,
        "note": table.note,
        "mac_unit": table.unit,
        "errors": list(table.errors),
        "rows": rows,
    }


def unexplained(result: dict[str, Any]) -> list[str]:
    """Rows of a computed table that differ by more than the tolerance and say nothing about it."""
    found = []
    for row in result["rows"]:
        off = row["difference_pct"] or {"params": None, "macs": None}
        too_far = abs(off["params"] or 0) > PARAMS_TOLERANCE or abs(off["macs"] or 0) > MACS_TOLERANCE
        if (too_far or row["arch"] is None) and not row["note"]:
            found.append(row["name"])
    return found


def increments() -> list[dict[str, Any]]:
    """Table 4 as differences to the plain row of each width: the paper's, ours, and ours with elementwise work."""
    rows = {row.name: row for table in TABLES if table.key == "4" for row in table.rows}
    found = []
    for width in ("0.5x", "1.0x"):
        plain = rows[f"ShuffleNetV2 {width} (the author's)"]
        for gate in ("SE", "SK"):
            row = rows[f"ShuffleNetV2 {width} + {gate}"]
            ours, base = _counted(row), _counted(plain)
            macs = (ours.macs - base.macs) / 1e6
            found.append(
                {
                    "name": row.name,
                    "paper": {
                        "params_m": round(float(row.params or 0) - float(plain.params or 0), 2),
                        "mmacs": round(float(row.macs or 0) - float(plain.macs or 0), 2),
                    },
                    "ours": {
                        "params_m": round((ours.params - base.params) / 1e6, 3),
                        "mmacs": round(macs, 2),
                        "mmacs_with_elementwise": round(macs + (ours.elementwise - base.elementwise) / 1e6, 2),
                    },
                }
            )
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _figure(row: Row, name: str, figure: str | None) -> str:
    return "-" if figure is None else f"{figure} †" if name in row.recalled else figure


def _percent(value: float | None) -> str:
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return "-" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def _header(table: Table) -> list[str]:
    macs = f"{table.unit}MACs"
    errors = [f"error %, {name}" for name in table.errors]
    counted = ["#P M, paper", "#P M, ours", "off %", f"{macs}, paper", f"{macs}, ours", "off %"]
    return ["network", "built as", *counted, *errors, "note"]


def _cells(table: Table, result: dict[str, Any]) -> list[list[str]]:
    """The rows of a table as text; the last cell refers to a note."""
    notes = _notes(table)
    cells = []
    for row, computed in zip(table.rows, result["rows"], strict=True):
        ours, off = computed["ours"] or {}, computed["difference_pct"] or {}
        cells.append(
            [
                row.name,
                row.arch or "not built",
                _figure(row, "params", row.params),
                _number(ours.get("params_m")),
                _percent(off.get("params")),
                _figure(row, "macs", row.macs),
                _number(ours.get(f"{table.unit.lower()}macs")),
                _percent(off.get("macs")),
                *(_figure(row, name, figure) for name, figure in zip(table.errors, row.errors, strict=True)),
                str(notes.index(row.note) + 1) if row.note else "",
            ]
        )
    return cells


def _notes(table: Table) -> list[str]:
    """The distinct notes of a table, in order; a row refers to one by its position."""
    return list(dict.fromkeys(row.note for row in table.rows if row.note))


def _is_sk(row: Row) -> bool:
    return (row.arch or "").startswith("sk") and "select=false" not in (row.arch or "")


PREAMBLE = """\
# The paper's tables, counted

Li et al., *Selective Kernel Networks*, CVPR 2019. Every figure of parameters and MACs that the paper prints, beside our
count of the network that `edge_sk.create_model` builds. Error rates are the paper's (top-1, per cent), not ours. The
paper's "FLOPs" are multiply-accumulates; ours are convolutions and matrix products with batch norm folded. `off` is
ours against the paper's in per cent; more than 1 % in parameters or 2 % in MACs has a note. † marks figures of the
paper quoted from memory that no source at hand confirms. Selective kernels are in bold.

Written by `python recipes/paper_tables.py --write`; a test compares this file with a fresh count.
"""


def markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown; the differences of Table 4 follow it."""
    parts = [PREAMBLE]
    for table in tables:
        header, cells, notes = _header(table), _cells(table, compute(table)), _notes(table)
        # A table without MACs or notes loses the columns that would be empty.
        keep = [i for i in range(len(header)) if any(row[i] not in ("-", "") for row in cells)]
        parts.append(f"## Table {table.key}: {table.title}\n")
        parts.append(f"| {' | '.join(header[i] for i in keep)} |")
        parts.append(f"|{'|'.join('---' if i in (0, 1) else '---:' for i in keep)}|")
        for row, texts in zip(table.rows, cells, strict=True):
            texts[0] = f"**{texts[0]}**" if _is_sk(row) else texts[0]
            texts[1] = f"`{texts[1]}`" if row.arch and not row.build else texts[1]
            parts.append(f"| {' | '.join(texts[i] for i in keep)} |")
        parts.append("")
        parts += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
        parts += [""] if notes else []
        parts += [table.note, ""] if table.note else []
        if table.key == "4":
            parts.append(_increments_markdown())
    return "\n".join(parts).rstrip("\n") + "\n"


INCREMENTS = (
    "network",
    "#P M, paper †",
    "#P M, ours",
    "MMACs, paper †",
    "MMACs, ours",
    "ours with elementwise work",
)


def _increment_cells() -> list[list[str]]:
    return [
        [
            row["name"],
            f"{row['paper']['params_m']:+.2f}",
            f"{row['ours']['params_m']:+.3f}",
            f"{row['paper']['mmacs']:+.2f}",
            f"{row['ours']['mmacs']:+.2f}",
            f"{row['ours']['mmacs_with_elementwise']:+.2f}",
        ]
        for row in increments()
    ]


def _increments_markdown() -> str:
    lines = ["What SE and SK add to the plain network of the same width:", ""]
    lines += [f"| {' | '.join(INCREMENTS)} |", "|---|---:|---:|---:|---:|---:|"]
    lines += [f"| {' | '.join(texts)} |" for texts in _increment_cells()]
    return "\n".join([*lines, ""])


def _print(tables: Sequence[Table]) -> None:
    from rich.table import Table as RichTable

    from edge_sk.profiling import print_table

    for table in tables:
        cells, notes = _cells(table, compute(table)), _notes(table)
        shown = RichTable(title=f"Table {table.key}: {table.title}", title_justify="left")
        for position, column in enumerate(_header(table)):
            shown.add_column(column, justify="left" if position < 2 else "right", no_wrap=True)
        for row, texts in zip(table.rows, cells, strict=True):
            shown.add_row(*texts, style="bold" if _is_sk(row) else None)
        print_table(shown)
        for number, note in enumerate(notes, 1):
            print(f"  {number}. {note}")
        if table.note:
            print(f"  {table.note}")
        print()
    if any(table.key == "4" for table in tables):
        shown = RichTable(title="Table 4: what SE and SK add to the plain network", title_justify="left")
        for column in INCREMENTS:
            shown.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
        for texts in _increment_cells():
            shown.add_row(*texts)
        print_table(shown)
    print("Error rates are the paper's. † quoted from memory, unconfirmed.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The SKNet paper's tables with our count beside every figure.")
    keys = [table.key for table in TABLES]
    parser.add_argument("--tables", nargs="+", metavar="KEY", help=f"only these, of {', '.join(keys)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--plot", metavar="DIR", help="write accuracy against MACs and parameters, PNG and SVG, to DIR")
    parser.add_argument("--write", action="store_true", help="renew the files of the repository that this script makes")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    args = _parser().parse_args(argv)
    known = {table.key.lower(): table for table in TABLES}
    for key in args.tables or ():
        if key.lower() not in known:
            raise InputError(f"--tables {key!r} is not a table here; there are {', '.join(t.key for t in TABLES)}")
    if args.write and args.tables:
        raise InputError("--write renews whole files: leave out --tables")
    tables = [known[key.lower()] for key in args.tables] if args.tables else list(TABLES)
    if args.json:
        print(_json(tables, argv))
    elif args.markdown:
        print(markdown(tables), end="")
    elif args.write:
        _write(HERE / "paper_tables.md", markdown(tables))
        _write(HERE / "results" / "paper_tables.json", _json(tables, argv) + "\n")
    elif not args.plot or args.tables:
        _print(tables)
    if args.plot or args.write:
        plot(Path(args.plot) if args.plot else HERE.parent / "docs")
    return 0


def _json(tables: Sequence[Table], argv: Sequence[str] | None) -> str:
    record: dict[str, Any] = {"tables": [compute(table) for table in tables]}
    if any(table.key == "4" for table in tables):
        record["table4_increments"] = increments()
    command = ["recipes/paper_tables.py", *(sys.argv[1:] if argv is None else argv)]
    return json.dumps(record | manifest(command), indent=2)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {path}")


# Curves of the plot: family, colour, networks as (table, row).
SK_COLOUR = "#c2410c"
FAMILIES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("SKNet", SK_COLOUR, (("S9", "SKNet-26"), ("S9", "SKNet-50"), ("S9", "SKNet-101"))),
    ("SENet", "#0f766e", (("2", "SENet-50"), ("2", "SENet-101"))),
    ("ResNeXt", "#1d4ed8", (("2", "ResNeXt-50"), ("2", "ResNeXt-101"))),
    ("ResNeXt + BAM", "#7c3aed", (("2", "ResNeXt-50 + BAM"), ("2", "ResNeXt-101 + BAM"))),
    ("ResNeXt + CBAM", "#a16207", (("2", "ResNeXt-50 + CBAM"), ("2", "ResNeXt-101 + CBAM"))),
    ("DPN", "#64748b", (("S9", "DPN-68"), ("S9", "DPN-92"), ("S9", "DPN-98"))),
    (
        "DenseNet",
        "#94a3b8",
        (("S9", "DenseNet-169 (k = 32)"), ("S9", "DenseNet-201 (k = 32)"), ("S9", "DenseNet-264 (k = 32)")),
    ),
    ("ResNet", "#475569", (("S9", "ResNet-50"), ("S9", "ResNet-101"), ("S9", "ResNet-152"))),
)


def plot(folder: Path) -> None:
    """Draw the paper's accuracy against our MACs and parameters; ``paper_accuracy.png`` and ``.svg`` in ``folder``."""
    import matplotlib

    rows = {(table.key, row.name): row for table in TABLES for row in table.rows}
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#94a3b8",
        "axes.labelcolor": "#0f172a",
        "xtick.color": "#475569",
        "ytick.color": "#475569",
        "svg.hashsalt": "edge-sk",
    }
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 5.2), dpi=160, facecolor="white", layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, quantity in zip(panels, ("macs", "params"), strict=True):
            for family, colour, names in FAMILIES:
                points = [_point(rows[name], quantity) for name in names]
                highlight = family == "SKNet"
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker="o",
                    markersize=7 if highlight else 5,
                    linewidth=2.6 if highlight else 1.2,
                    label=family,
                    zorder=3 if highlight else 2,
                )
                if highlight:
                    for (x, y), (_, name) in zip(points, names, strict=True):
                        axes.annotate(
                            name,
                            (x, y),
                            xytext=(-8, 5),
                            textcoords="offset points",
                            ha="right",
                            color=colour,
                            fontweight="bold",
                        )
            axes.set_xlim(left=0)
            axes.set_ylim(75.9, 80.1)
            axes.grid(color="#e2e8f0", linewidth=0.8)
            axes.set_axisbelow(True)
        panels[0].set_xlabel("GMACs, counted by edge_sk")
        panels[1].set_xlabel("parameters, millions, counted by edge_sk")
        panels[0].set_ylabel("ImageNet top-1 accuracy %, as the paper reports it")
        panels[1].legend(loc="lower right", frameon=False, fontsize=9)
        for extension in (".png", ".svg"):
            with atomic_write(folder / f"paper_accuracy{extension}") as temporary:
                # Without a date the file stays the same when nothing in it changed.
                metadata = {"Date": None} if extension == ".svg" else None
                figure.savefig(temporary, format=extension[1:], metadata=metadata)
            print(f"wrote {folder / f'paper_accuracy{extension}'}")


def _point(row: Row, quantity: str) -> tuple[float, float]:
    ours = _counted(row)
    return (ours.macs / 1e9 if quantity == "macs" else ours.params / 1e6), 100 - float(row.errors[0] or "nan")


if __name__ == "__main__":
    sys.exit(main())
