"""The experiments: which networks are trained and looked at, and the command of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError
from edge_sk.training.comparison import run_folder

DATA = "scaled_digits"  # the data set and its recipe
RUNS = "runs/scaled_digits"
SEEDS = (0, 1, 2, 3, 4)
LONGER = 15  # epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks trained by one recipe on the same seeds.

    Args:
        key: Name of the record and the plot.
        title: Heading.
        archs: Names and what the paper calls them; the first is the baseline.
        epochs: ``None``: as many as the recipe has.
        seeds: Of its runs.
    """

    key: str
    title: str
    archs: Mapping[str, str]
    epochs: int | None = None
    seeds: tuple[int, ...] = SEEDS

    @property
    def output(self) -> str:
        """Where its runs go."""
        return RUNS if self.epochs is None else f"{RUNS}_{self.epochs}"

    @property
    def settings(self) -> list[str]:
        """What it sets in the recipe."""
        return [] if self.epochs is None else [f"schedule.epochs={self.epochs}"]

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        schedule = ["--set", *self.settings] if self.settings else []
        seeds = ["--seeds", *map(str, self.seeds)]
        record = f"recipes/results/{self.key}.json"
        tail = ["--jobs", "2", "--device", "cpu", "--output", self.output, "--record", record]
        return ["recipes/compare.py", "--arch", *self.archs, *schedule, *seeds, *tail]

    @property
    def wanted(self) -> dict[str, Any]:
        """What its record must say."""
        return {
            "networks": list(self.archs),
            "seeds": list(self.seeds),
            "data": DATA,
            "recipe": DATA,
            "set": self.settings,
            "input_differences": {},
        }


# What SK is compared with, by how it is called on the page.
ROLES = {
    "plain": ("{}", "plain"),
    "SE": ("se_{}", "squeeze and excitation"),
    "one branch": ("sk_{}@kernels=3,select=false", "control: plain, with the branches' ReLU behind its 3x3"),
    "sum of the branches": ("sk_{}@select=false", "control: the branches are summed, nothing is selected"),
    "equal kernels": (
        "sk_{}@kernels=3+3",
        "control: selection between two identical 3x3 (the paper's row of 20.91)",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Comparison):
    """Networks of one kind without and with selective kernels."""

    plain: str

    @property
    def selective(self) -> str:
        """The network in question."""
        return f"sk_{self.plain}"

    def other(self, role: str) -> str | None:
        """The network of a role, if it is in the comparison."""
        arch = ROLES[role][0].format(self.plain)
        return arch if arch in self.archs else None


def family(plain: str, *roles: str, epochs: int | None = None) -> Family:
    """The networks of ``roles`` and SK."""
    schedule = "" if epochs is None else f"_{epochs}_epochs"
    return Family(
        key=f"compare_{plain}{schedule}",
        title=f"`{plain}`{'' if epochs is None else f', {epochs} epochs'}: {', '.join(roles)}, SK",
        archs={ROLES[role][0].format(plain): ROLES[role][1] for role in roles}
        | {f"sk_{plain}": "selective kernels, 3x3 and a 3x3 of dilation 2"},
        epochs=epochs,
        plain=plain,
    )


def kernels(spec: str, *, select: bool) -> str:
    """A row of Tables 6 and 7 on the small network."""
    name = "sk_shufflenetv2_0.5"
    if select:
        return name if spec == "3+3d2" else f"{name}@kernels={spec}"
    return f"{name}@select=false" if spec == "3+3d2" else f"{name}@kernels={spec},select=false"


SMALL = family("shufflenetv2_0.5", *ROLES)
SMALL_LONGER = family("shufflenetv2_0.5", "plain", "SE", epochs=LONGER)
LARGER = family("shufflenetv2_1.0", "plain", "SE", "sum of the branches", "equal kernels")
# One branch is the plain network here, which has the activation already.
MOBILENET = family("mobilenetv2_0.5", "plain", "SE", "sum of the branches", "equal kernels")
FAMILIES = (SMALL, SMALL_LONGER, LARGER, MOBILENET)
KERNELS = Comparison(
    key="compare_kernels",
    title="The kernels of Tables 6 and 7, in `sk_shufflenetv2_0.5`",
    archs={
        kernels("3", select=False): "K3: one branch",
        kernels("3d2", select=False): "K5: one branch of dilation 2",
        kernels("3d3", select=False): "K7: one branch of dilation 3",
        kernels("3+3", select=True): "K3 + K3, SK (Table 6, D = 1)",
        kernels("3+3d2", select=False): "K3 + K5, sum",
        kernels("3+3d2", select=True): "K3 + K5, SK (Table 6, D = 2)",
        kernels("3+5", select=True): "K3 + dense 5x5, SK (Table 6)",
        kernels("3+3d3", select=False): "K3 + K7, sum",
        kernels("3+3d3", select=True): "K3 + K7, SK (Table 6, D = 3)",
        kernels("3+7", select=True): "K3 + dense 7x7, SK (Table 6)",
        kernels("3d2+3d3", select=False): "K5 + K7, sum",
        kernels("3d2+3d3", select=True): "K5 + K7, SK",
        kernels("3+3d2+3d3", select=False): "K3 + K5 + K7, sum",
        kernels("3+3d2+3d3", select=True): "K3 + K5 + K7, SK",
    },
    seeds=(0, 1, 2),
)
# Sets of kernels that Table 7 has both summed and selected from.
SUMMED_AND_SELECTED = {"K3 + K5": "3+3d2", "K3 + K7": "3+3d3", "K5 + K7": "3d2+3d3", "K3 + K5 + K7": "3+3d2+3d3"}
COMPARISONS = (*FAMILIES, KERNELS)


@dataclasses.dataclass(frozen=True)
class Watched:
    """A network of a comparison whose attention is looked at.

    Args:
        arch: Its name.
        trained: The comparison that trained it.
        is_control: Its kernels are equal, so that no choice between them means anything.
    """

    arch: str
    trained: Comparison
    is_control: bool = False

    @property
    def key(self) -> str:
        """What its record and plot are called."""
        schedule = "" if self.trained.epochs is None else f"_{self.trained.epochs}_epochs"
        return f"attention_{self.arch.replace('@', '_').replace('=', '_')}{schedule}"

    @property
    def title(self) -> str:
        """Heading."""
        schedule = "" if self.trained.epochs is None else f", {self.trained.epochs} epochs"
        return f"`{self.arch}`{schedule}{', control: equal kernels' if self.is_control else ''}"

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        runs = [str(run_folder(self.trained.output, self.arch, seed)) for seed in self.trained.seeds]
        tail = ["--output", f"reports/{self.key}", "--record", f"recipes/results/{self.key}.json"]
        return ["recipes/attention.py", "--checkpoint", *runs, *tail]

    @property
    def wanted(self) -> dict[str, Any]:
        """What its record must say."""
        wanted = {"arch": self.arch, "seeds": list(self.trained.seeds), "data": DATA, "recipe": DATA}
        return wanted if self.trained.epochs is None else wanted | {"epochs": self.trained.epochs}


WATCHED = (
    Watched("sk_shufflenetv2_0.5", SMALL_LONGER),
    Watched("sk_shufflenetv2_0.5", SMALL),
    Watched("sk_shufflenetv2_0.5@kernels=3+3", SMALL, is_control=True),
    Watched("sk_shufflenetv2_1.0", LARGER),
    Watched("sk_mobilenetv2_0.5", MOBILENET),
)


EXPERIMENTS: tuple[Comparison | Watched, ...] = (*COMPARISONS, *WATCHED)

Record = dict[str, Any]


def read_records(folder: Path) -> dict[str, Record]:
    """The records of the experiments that have been run, by key.

    Raises:
        InputError: One is damaged, or of something else than the experiment of its name.
    """
    return {
        item.key: record for item in EXPERIMENTS if (record := _read(folder / f"{item.key}.json", item)) is not None
    }


def _read(path: Path, item: Comparison | Watched) -> Record | None:
    if not path.is_file():
        return None
    again = f"make it again: python {' '.join(item.command)}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record | {"networks": [network["arch"] for network in record.get("networks", [])]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from None
    for name, value in item.wanted.items():
        if found.get(name) != value:
            raise InputError(f"{path} has {name} {found.get(name)}, not {value}; {again}")
    return record
