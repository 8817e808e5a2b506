"""The experiments of ``experiments.yaml``: their commands, in the order in which they are run, and their records."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edge_sk.errors import InputError
from edge_sk.reading import parse_json, read_json, read_text, short
from recipes.experiments.comparison import run_folder

DATA = "scaled_glyphs"  # the data set and its recipe
RUNS = "runs/glyphs"
EXPORTS = "exports/glyphs"
SEEDS = (0, 1, 2, 3, 4)
RATES = (0.004, 0.008)
SCALES = (0.2, 0.4, 0.8)  # that attention is recorded at
LATENCY = "glyphs_latency"

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks trained by one recipe on the same seeds; ``experiments.yaml`` explains the fields."""

    key: str
    title: str
    archs: Mapping[str, str]
    set: Sequence[str] = ()

    @property
    def runs(self) -> str:
        """The folder of its runs."""
        return f"{RUNS}_{self.key}" if self.set else RUNS

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        settings = ["--set", *self.set] if self.set else []
        tail = ["--rates", *map(str, RATES), "--workers", "0", "--device", "cpu", "--output", self.runs]
        head = ["recipes/compare.py", "--arch", *self.archs, "--data", DATA, *settings, "--seeds", *map(str, SEEDS)]
        return [*head, *tail, "--record", f"recipes/results/{self.key}.json"]


_LISTED = yaml.safe_load(Path(__file__).with_name("experiments.yaml").read_text(encoding="utf-8"))
COMPARISONS = {entry["key"]: Comparison(**entry) for entry in _LISTED["comparisons"]}
OLD: dict[str, str] = _LISTED["old"]
# Of the networks whose attention is recorded: the key of the record, and the name on the page.
ATTENTION = {
    arch: (f"glyphs_attention_{re.sub('[@=,+]', '_', arch)}", label)
    for archs in _LISTED["attention"].values()
    for arch, label in archs.items()
}


def commands(*, finished: bool = False) -> list[list[str]]:
    """The command lines that make the records, without ``python``; ``finished``: of what is trained already."""
    found, exports = [], {}
    for item in COMPARISONS.values():
        found.append([*item.command, *(["--finished"] if finished else [])])
        for arch in _LISTED["attention"].get(item.key, ()):
            runs = [str(run_folder(item.runs, arch, seed)) for seed in SEEDS]
            tail = ["--scales", *map(str, SCALES), "--output", f"reports/{ATTENTION[arch][0]}"]
            record = ["--record", f"recipes/results/{ATTENTION[arch][0]}.json"]
            found.append(["recipes/attention.py", "--checkpoint", *runs, *tail, *record])
        if not item.set:
            exports |= {arch: run_folder(item.runs, arch, SEEDS[0]) for arch in item.archs}
    found += [["deploy/export.py", "--checkpoint", str(run), "--output", EXPORTS] for run in exports.values()]
    measure = ["--threads", "1", "--rounds", "5", "--output", f"recipes/results/{LATENCY}.jsonl"]
    return [*found, ["deploy/benchmark.py", EXPORTS, *measure]]


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records of the experiments that were run, by key; of those of 0.1 too.

    Raises:
        InputError: A record is damaged, or of something else than its experiment.
    """
    keys = [*COMPARISONS, *(key for key, _ in ATTENTION.values()), *OLD]
    records = {key: read_json(path) for key in keys if (path := folder / f"{key}.json").is_file()}
    for key, item in COMPARISONS.items():
        if key not in records:
            continue
        try:
            archs = [network["arch"] for network in records[key]["networks"]]
            found = {name: records[key][name] for name in ("data", "recipe", "set", "input_differences")}
        except (TypeError, KeyError) as error:
            again = f"make it again: python {' '.join(item.command)}"
            raise InputError(f"{folder / key}.json is damaged ({type(error).__name__}: {error}); {again}") from None
        expected = {"data": DATA, "recipe": DATA, "set": list(item.set), "input_differences": {}}
        if (
            found != expected
            or archs != [arch for arch in item.archs if arch in archs]
            or archs[:1] != [*item.archs][:1]
        ):
            raise InputError(f"{folder / key}.json is of {short(archs)} and {short(found)}, not of {key}")
    return records


def read_ratios(folder: Path) -> dict[str, dict[str, float]]:
    """Host latency of the networks that were measured, as a share of that of the first of their comparison.

    The files took turns in every round; of the rounds' ratios the median. By key of the comparison, then by network.
    """
    path = folder / f"{LATENCY}.jsonl"
    rows = [parse_json(line, str(path)) for line in read_text(path).splitlines()] if path.is_file() else []
    times = {row["file"].removesuffix("_xnnpack_fp32.pte"): row["round_p50_ms"] for row in rows}
    found = {}
    for key, item in COMPARISONS.items():
        measured = {
            arch: times[name] for arch in item.archs if (name := re.sub("[^A-Za-z0-9._-]+", "-", arch)) in times
        }
        base = measured.get(next(iter(item.archs)))
        if base is not None and not item.set:
            found[key] = {
                arch: statistics.median(a / b for a, b in zip(of_arch, base, strict=True))
                for arch, of_arch in measured.items()
            }
    return found
