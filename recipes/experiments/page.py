"""Fill ``page.md.jinja``, the page on the experiments, with the numbers of their records."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from edge_sk.training.glyphs import IMAGES
from recipes.experiments.attention_summary import direction
from recipes.experiments.comparison import SCALE_EDGES, paired, points, verdict
from recipes.experiments.confidence import mean_interval
from recipes.experiments.plan import ATTENTION, COMPARISONS, DATA, OLD, RATES, SEEDS, Record, commands
from recipes.markdown_tables import markdown_table
from recipes.planning import load_recipe

WORDS = {"better": "ahead of", "worse": "behind", "not shown": "not shown to differ from"}
# What SK is compared with, and which question that answers.
WIDER = ("plain, as large as SK", "plain, 0.75x")
QUESTIONS = {
    "Does SK help?": ("plain",),
    "More than a wider plain network?": WIDER,
    "By choosing, or by having two kernels?": ("sum of the branches",),
}
ADVICE = {
    "better": "SK is worth its latency",
    "worse": "a wider plain network is the better choice",
    "not shown": "neither is shown to be better, and a wider plain network is simpler",
}
RATIOS = dict[str, dict[str, float]]


def page(records: Mapping[str, Record], ratios: RATIOS) -> str:
    """Return the whole page, from the records of ``read_records`` and ``read_ratios``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    done = {key: records[key] for key in COMPARISONS if key in records}
    scatter = _scatter(done)
    text = environment.get_template("page.md.jinja").render(
        advice=[f"{title}: {ADVICE[verdict(gain)]}" for title, name, gain in _gains(done, WIDER)],
        answers={question: _answer(done, names) for question, names in QUESTIONS.items()},
        results=_results(done, ratios),
        drawn=any(key in done for key in ratios),
        scales=_scales(done),
        attention=_attention(records),
        old=[_old(key, arch, records[key]) for key, arch in OLD.items() if key in records],
        runs=[(item, records.get(item.key), sum(_seeds(done.get(item.key)).values())) for item in COMPARISONS.values()],
        seeds=len(SEEDS),
        rates=" or ".join(map(str, RATES)),
        half_width=half_width,
        images=f"{load_recipe(DATA).schedule.epochs * IMAGES['train']:,}",
        scatter=scatter,
        needed=None if scatter is None else next((n for n in range(2, 100) if half_width(n) * scatter <= 0.5), 100),
        last=["python " + " ".join(command) for command in commands()[-2:]],
    )
    return text.rstrip() + "\n"


def half_width(seeds: int) -> float:
    """Half the width of the 95 % interval of a mean over so many seeds that scatter by one point."""
    low, high = mean_interval([-1.0, 1.0] + [0.0] * (seeds - 2))
    return (high - low) / 2 / statistics.stdev([-1.0, 1.0] + [0.0] * (seeds - 2))


def _seeds(record: Record | None) -> dict[str, int]:
    return {entry["arch"]: len(entry["top1_by_seed"]) for entry in (record or {"networks": []})["networks"]}


def _named(records: Mapping[str, Record], title: str) -> dict[str, dict[str, Any]]:
    """The networks of all comparisons of one title, by their names on the page."""
    found: dict[str, dict[str, Any]] = {}
    for key, record in records.items():
        if COMPARISONS[key].title == title:
            for entry in record["networks"]:
                found.setdefault(COMPARISONS[key].archs[entry["arch"]], entry)
    return found


def _titles(records: Mapping[str, Record]) -> list[str]:
    return list(dict.fromkeys(COMPARISONS[key].title for key in records))


def _gains(records: Mapping[str, Record], names: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Title, name of the other network and paired difference, wherever SK was run on a seed of one of the names."""
    for title in _titles(records):
        entries = _named(records, title)
        for name in names:
            if "SK" in entries and name in entries:
                gain = paired(entries["SK"], entries[name])
                if gain["difference_by_seed"]:
                    yield title, name, gain


def _answer(records: Mapping[str, Record], names: Sequence[str]) -> str:
    """What SK is ahead of or behind, for every network that has been compared with one of the names."""
    said = [
        f"{title}: {WORDS[verdict(gain)]} the network *{name}* ({points(gain)} points, "
        f"{len(gain['difference_by_seed'])} seed{'s' * (len(gain['difference_by_seed']) != 1)})"
        for title, name, gain in _gains(records, names)
    ]
    return "; ".join(said) + "." if said else "Not run yet."


def _results(records: Mapping[str, Record], ratios: RATIOS) -> str:
    """The table of all networks."""
    header = ["", "network", "seeds", "top-1 %", "minus plain", "SK minus it", "host latency, of plain", "params"]
    rows = []
    for title in _titles(records):
        entries = _named(records, title)
        known = {
            arch: ratio for key in ratios if COMPARISONS[key].title == title for arch, ratio in ratios[key].items()
        }
        for name, entry in entries.items():
            own = points(paired(entry, first)) if (first := next(iter(entries.values()))) is not entry else ""
            minus = points(paired(entries["SK"], entry)) if "SK" in entries and name != "SK" else ""
            ratio = f"{known[entry['arch']]:.2f}" if entry["arch"] in known else "not measured"
            size = f"{entry['params'] / 1e6:.3f} M"
            seeds, top1 = len(entry["top1_by_seed"]), f"{entry['top1']:.2f}"
            rows.append([f"{title}: {name}", f"`{entry['arch']}`", seeds, top1, own, minus, ratio, size])
    return markdown_table(header, rows, "llrrrrrr") if rows else ""


def _scales(records: Mapping[str, Record]) -> str:
    """Accuracy by the scale of the glyph: plain, SK, and their paired difference."""
    rows = []
    for title in _titles(records):
        entries = _named(records, title)
        if "SK" not in entries or "plain" not in entries:
            continue
        sk, plain = entries["SK"]["top1_by_scale"], entries["plain"]["top1_by_scale"]
        for name, of_seeds in (("plain", plain), ("SK", sk)):
            rows.append(
                [f"{title}: {name}", *(f"{statistics.fmean(bin):.2f}" for bin in zip(*of_seeds.values(), strict=True))]
            )
        cells = []
        for place in range(len(SCALE_EDGES) - 1):
            gains = {seed: sk[seed][place] - plain[seed][place] for seed in sk if seed in plain}
            low, high = mean_interval([*gains.values()])
            mean = statistics.fmean(gains.values()) if gains else None
            cells.append(points({"difference": mean, "difference_ci95": None if math.isinf(low) else [low, high]}))
        rows.append([f"{title}: SK minus plain", *cells])
    edges = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(SCALE_EDGES)]
    return markdown_table(["", *edges], rows, "lrrrr") if rows else ""


def _attention(records: Mapping[str, Record]) -> str:
    """Where the attention moves as the glyph grows: a row for each network and size of its units' maps."""
    rows = []
    for arch, (key, label) in ATTENTION.items():
        for group in records[key]["by_map"] if key in records else ():
            low, high = group["shift_ci95"]
            shift = f"{group['shift']:+.3f} [{low:+.3f}, {high:+.3f}]"
            size = "x".join(map(str, group["map"]))
            rows.append([f"`{arch}`, {label}", size, len(group["units"]), shift, direction(group)])
    return (
        markdown_table(["network", "map", "units", "shift [95 % CI]", "to the kernel"], rows, "lrrrl") if rows else ""
    )


def _old(key: str, arch: str, record: Record) -> str:
    """One line on a record of version 0.1."""
    entries = {entry["arch"]: entry for entry in record["networks"]}
    first, link = next(iter(entries)), f"[{key}](../recipes/results/{key}.json)"
    return (
        f"{link}: `{arch}` minus `{first}` {points(paired(entries[arch], entries[first]))}, {record['epochs']} epochs"
    )


def _scatter(records: Mapping[str, Record]) -> float | None:
    """The median, over networks, of the standard deviation of the paired differences."""
    entries = [entry for record in records.values() for entry in record["networks"] if "difference" in entry]
    several = [[*entry["difference_by_seed"].values()] for entry in entries if len(entry["difference_by_seed"]) > 2]
    return statistics.median(map(statistics.stdev, several)) if several else None
