"""Fill ``page.md.jinja``, the page on the experiments, with the numbers of their records."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from recipes.experiments import attention_summary, comparison
from recipes.experiments.plan import ATTENTION, COMPARISONS, EXPERIMENTS, IMAGES, JOBS, Comparison, Record
from recipes.markdown_tables import markdown_table
from recipes.paper.tables import TABLES

# What SK is compared with: its name in a comparison, and in a sentence.
OTHERS = {
    "plain": "the plain network",
    "SE": "SE",
    "one branch": "the plain network with the branches' ReLU",
    "sum of the branches": "its own branches summed, without a choice",
    "equal kernels": "the choice between two equal kernels",
}
# Columns of a table on attention.
GROUPS = [
    "map",
    "units",
    "smallest digits",
    "largest digits",
    "mean shift [95 % CI]",
    "size of the shift",
    "units by direction",
]
# Errors in the rows of the paper's Tables 6 and 7.
ERRORS = {row.name: row.errors[0] for table in TABLES if table.key in ("6", "7") for row in table.rows}


def page(records: Mapping[str, Record]) -> str:
    """Return the whole page, from the records of ``read_records``."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    strict = jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    filters = (anchor, as_text, attention_table, comparison_table, count, group_rows, hours, repeated, selection)
    environment.filters |= {function.__name__: function for function in filters}
    text = environment.get_template("page.md.jinja").render(
        records=records,
        comparisons=list(COMPARISONS.values()),
        attention=ATTENTION,
        missing=[
            item.title if isinstance(item, Comparison) else f"attention of {item.title}"
            for item in EXPERIMENTS
            if item.key not in records
        ],
        table=markdown_table,
        groups=GROUPS,
        others=OTHERS,
        images=IMAGES,
        equal=ERRORS["3x3, D = 1, G = 32"],
        dilated=ERRORS["3x3, D = 2, G = 32"],
        **_against_others(records),
        **_shifts(records),
    )
    return text.rstrip() + "\n"


def _against_others(records: Mapping[str, Record]) -> dict[str, Any]:
    """Compare SK with the other networks: a row for each comparison, and the verdicts of those by today's code."""
    rows: list[list[str]] = []
    verdicts: dict[str, list[str]] = {name: [] for name in OTHERS}
    for item in COMPARISONS.values():
        selective = item.arch("SK")
        if item.key not in records or selective is None:
            continue
        networks = _networks(records[item.key])
        sk = networks[selective]
        name = f"`{selective}`{f', {item.occasion}' if item.occasion else ''}"
        rows.append([name, str(item.epochs), str(len(item.seeds)), f"{sk['top1']:.2f}"])
        for other in OTHERS:
            arch = item.arch(other)
            difference = None if arch is None else comparison.paired(sk, networks[arch])
            rows[-1].append("" if difference is None else _points(difference))
            if difference is not None and item.repeatable:
                verdicts[other].append(comparison.verdict(difference))
    columns = ["network", "epochs", "seeds", "top-1 %", *(f"SK minus {other}" for other in OTHERS)]
    return {"sk_columns": columns, "sk_rows": rows, "verdicts": verdicts}


def _shifts(records: Mapping[str, Record]) -> dict[str, Any]:
    """Collect where the attention moved as the object grew, with a row for each network and map size."""
    rows: list[list[str]] = []
    places: list[str] = []
    directions: dict[bool, list[str]] = {False: [], True: []}
    for item in ATTENTION:
        if item.key not in records:
            continue
        groups = group_rows(records[item.key])
        rows += [[item.title, *cells] for cells in groups]
        found = [attention_summary.direction(group) for group in records[item.key]["by_map"]]
        directions[item.is_control] += found
        maps = [cells[0] for cells, direction in zip(groups, found, strict=True) if direction == "larger"]
        if maps and not item.is_control:
            places.append(f"{' and '.join(maps)} of {item.title}")
    return {"shift_rows": rows, "places": places, "sk_shifts": directions[False], "control_shifts": directions[True]}


def anchor(title: str) -> str:
    """Return the end of a link to a heading, as GitHub makes it."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def as_text(command: Sequence[str]) -> str:
    """Return a command as typed."""
    return f"python {' '.join(command)}"


def count(verdicts: Sequence[str]) -> str:
    """Say how often each verdict was found."""
    found = [f"{name} in {verdicts.count(name)}" for name in ("better", "worse", "not shown") if name in verdicts]
    return f"{', '.join(found)} of {len(verdicts)}"


def comparison_table(record: Record, item: Comparison) -> str:
    """Return the table of a comparison."""
    return comparison.markdown(record["networks"], item.archs)


def hours(record: Record, item: Comparison) -> float:
    """Return how long the comparison takes."""
    return sum(network["seconds"] for network in record["networks"]) * len(item.seeds) / JOBS / 3600


def repeated(before: Record, again: Record, item: Comparison) -> dict[str, Any]:
    """Compare two trainings of the same seeds: a row per network, and how much single runs differ."""
    first = _networks(before)
    pairs = [(first[entry["arch"]], entry) for entry in again["networks"] if entry["arch"] in first]
    runs = [abs(top1 - old["top1_by_seed"][seed]) for old, new in pairs for seed, top1 in new["top1_by_seed"].items()]
    rows = [
        [item.archs[new["arch"]], f"{old['top1']:.2f}", f"{new['top1']:.2f}", _points(comparison.paired(new, old))]
        for old, new in pairs
    ]
    return {"rows": rows, "median": statistics.median(runs), "largest": max(runs)}


def selection(record: Record, item: Comparison) -> dict[str, Any]:
    """Compare selection with the sum of the same kernels, here and in the paper: a row per set of kernels."""
    by_name = {item.archs[entry["arch"]]: entry for entry in record["networks"]}
    rows = []
    for kernels in (name.removesuffix(", sum") for name in by_name if name.endswith(", sum")):
        both = f"{kernels}, sum", f"{kernels}, SK"
        summed, selected = (by_name[name] for name in both)
        difference = _points(comparison.paired(selected, summed))
        paper = " / ".join(str(ERRORS[name]) for name in both)
        rows.append([kernels, f"{summed['top1']:.2f}", f"{selected['top1']:.2f}", difference, paper])
    if not rows:
        return {"rows": rows}
    intervals = [entry["difference_ci95"] for entry in record["networks"][1:]]
    return {"rows": rows, "half_width": statistics.median((high - low) / 2 for low, high in intervals)}


def attention_table(record: Record) -> str:
    """Return the table of the attention of every unit."""
    return attention_summary.markdown(record)


def group_rows(record: Record) -> list[list[str]]:
    """Return a row of ``GROUPS`` for the units of each map size, by depth: how far and where the attention moved."""
    units = {unit["name"]: unit for unit in record["units"]}
    rows = []
    for group in record["by_map"]:
        members = [units[name] for name in group["units"]]
        directions = [attention_summary.direction(unit) for unit in members]
        first, last = (statistics.fmean(unit["difference"][place] for unit in members) for place in (0, -1))
        low, high = group["shift_ci95"]
        shift = _bold(f"{group['shift']:+.3f}", low > 0 or high < 0)
        means = [f"{first:+.3f}", f"{last:+.3f}", f"{shift} [{low:+.3f}, {high:+.3f}]", f"{group['magnitude']:.3f}"]
        by_direction = ", ".join(f"{name} {directions.count(name)}" for name in sorted(set(directions)))
        rows.append(["x".join(map(str, group["map"])), str(len(members)), *means, by_direction])
    return rows


def _networks(record: Record) -> dict[str, Any]:
    return {entry["arch"]: entry for entry in record["networks"]}


def _points(difference: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval, in bold if the interval leaves out zero."""
    gain, interval = f"{difference['difference']:+.2f}", difference["difference_ci95"]
    if interval is None:
        return f"{gain} (one seed)"
    return f"{_bold(gain, comparison.verdict(difference) != 'not shown')} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text
