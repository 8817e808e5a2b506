"""The experiments of ``experiments.yaml``: the command and the record of each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edge_sk.errors import InputError
from edge_sk.reading import read_json, short
from recipes.experiments.comparison import run_folder

DATA = "scaled_digits"  # the data set and its recipe
EPOCHS = 5  # the recipe's
RUNS = "runs/scaled_digits"
JOBS = 2  # runs at once
# Size of the test set, and the scales that it is drawn at.
IMAGES = 1440
SCALES = (0.25, 0.5, 1.0)

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks trained by one recipe on the same seeds; ``experiments.yaml`` explains the fields."""

    key: str
    title: str
    archs: Mapping[str, str]
    output: str = RUNS
    epochs: int = EPOCHS
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    occasion: str = ""
    again: str = ""
    code: str = ""
    note: str = ""

    def arch(self, name: str) -> str | None:
        """Return the architecture that has this name on the page."""
        return next((arch for arch, label in self.archs.items() if label == name), None)

    @property
    def repeatable(self) -> bool:
        """Whether today's code makes the record again."""
        return not self.code

    @property
    def settings(self) -> list[str]:
        """The fields of the recipe that it sets."""
        return [] if self.epochs == EPOCHS else [f"schedule.epochs={self.epochs}"]

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        settings = ["--set", *self.settings] if self.settings else []
        tail = ["--jobs", str(JOBS), "--device", "cpu", "--output", self.output, "--record", _record(self.key)]
        return ["recipes/compare.py", "--arch", *self.archs, *settings, "--seeds", *map(str, self.seeds), *tail]

    @property
    def expected(self) -> Record:
        """Fields by which its record is recognised."""
        common = {"seeds": list(self.seeds), "data": DATA, "recipe": DATA}
        own = {"set": self.settings, "epochs": self.epochs, "input_differences": {}}
        return {"networks": list(self.archs), **common, **own}


@dataclasses.dataclass(frozen=True)
class Attention:
    """The attention of a network of a comparison against the scale of the object."""

    arch: str
    comparison: Comparison
    repeatable = True

    @property
    def is_control(self) -> bool:
        """Whether its kernels are equal, so that a choice between them means nothing."""
        return self.comparison.archs[self.arch] == "equal kernels"

    @property
    def key(self) -> str:
        """Name of the record and the plot."""
        suffix = self.comparison.output.removeprefix(RUNS)
        return f"attention_{re.sub('[@=,]', '_', self.arch)}{suffix}"

    @property
    def title(self) -> str:
        """Heading on the page."""
        occasion = f", {self.comparison.occasion}" if self.comparison.occasion else ""
        return f"`{self.arch}`{occasion}{', control: equal kernels' if self.is_control else ''}"

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        runs = [str(run_folder(self.comparison.output, self.arch, seed)) for seed in self.comparison.seeds]
        tail = ["--output", f"reports/{self.key}", "--record", _record(self.key)]
        return ["recipes/attention.py", "--checkpoint", *runs, *tail]

    @property
    def expected(self) -> Record:
        """Fields by which its record is recognised."""
        same = {name: self.comparison.expected[name] for name in ("seeds", "data", "recipe", "epochs")}
        return {"arch": self.arch, **same, "scales": list(SCALES), "images": IMAGES}


def _record(key: str) -> str:
    return f"recipes/results/{key}.json"


_LISTED = yaml.safe_load(Path(__file__).with_name("experiments.yaml").read_text(encoding="utf-8"))
COMPARISONS = {entry["key"]: Comparison(**entry) for entry in _LISTED["comparisons"]}
ATTENTION = [Attention(entry["arch"], COMPARISONS[entry["comparison"]]) for entry in _LISTED["attention"]]
EXPERIMENTS: list[Comparison | Attention] = [*COMPARISONS.values(), *ATTENTION]


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records of the experiments that were run, by key.

    Raises:
        InputError: A record is damaged, or of something else than its experiment.
    """
    return {item.key: _read(path, item) for item in EXPERIMENTS if (path := folder / f"{item.key}.json").is_file()}


def _read(path: Path, item: Comparison | Attention) -> Record:
    again = f"make it again: python {' '.join(item.command)}"
    if not item.repeatable:
        again = "it cannot be made again: restore it with git"
    try:
        record = read_json(path)
        found = record | {"networks": [network["arch"] for network in record.get("networks", [])]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).removeprefix(f"{path} ")
        raise InputError(f"{path} is damaged ({type(error).__name__}: {short(reason, 100)}); {again}") from None
    parts = {"commit"} | ({"units", "by_map"} if isinstance(item, Attention) else set())
    if missing := sorted(parts - record.keys()):
        raise InputError(f"{path} is damaged (it has no {', '.join(missing)}); {again}")
    for name, value in item.expected.items():
        if found.get(name) != value:
            raise InputError(f"{path} has {name} {short(found.get(name))}, not {value}; {again}")
    return record
