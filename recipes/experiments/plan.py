"""The experiments: which networks are trained and looked at, and the command of each."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError
from recipes.experiments.comparison import run_folder

DATA = "scaled_digits"  # the data set and its recipe
EPOCHS = 5  # of the recipe
LONGER = 15
RUNS = "runs/scaled_digits"
SEEDS = (0, 1, 2, 3, 4)
# Of the test set, and the scales that it is drawn at.
IMAGES = 1440
SCALES = (0.25, 0.5, 1.0)
JOBS = 2  # runs at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks trained by one recipe on the same seeds.

    Args:
        key: Name of the record and the plot.
        title: Heading.
        archs: Names and what they are called; the first is the baseline.
        output: Where its runs go.
        epochs: Of its runs.
        seeds: Of its runs.
        note: What to know of it.
        code: The commit whose code it is of, where that is another than today's: its record is kept, not made again.
    """

    key: str
    title: str
    archs: Mapping[str, str]
    output: str = RUNS
    epochs: int = EPOCHS
    seeds: tuple[int, ...] = SEEDS
    note: str = ""
    code: str = ""

    @property
    def settings(self) -> list[str]:
        """What it sets in the recipe."""
        return [] if self.epochs == EPOCHS else [f"schedule.epochs={self.epochs}"]

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        schedule = ["--set", *self.settings] if self.settings else []
        seeds = ["--seeds", *map(str, self.seeds)]
        record = f"recipes/results/{self.key}.json"
        tail = ["--jobs", str(JOBS), "--device", "cpu", "--output", self.output, "--record", record]
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
            "epochs": self.epochs,
            "input_differences": {},
        }


# What SK is compared with, by how it is called on the page.
ROLES = {
    "plain": "{plain}",
    "SE": "se_{plain}",
    "one branch": "{sk},kernels=3,select=false",
    "sum of the branches": "{sk},select=false",
    "equal kernels": "{sk},kernels=3+3",
}
# What version 0.1 trained: an activation in every branch, and in MobileNet every site.
FORMS = {"shufflenetv2": "act=relu", "mobilenetv2": "sk_units=all,act=relu6"}


def selective(plain: str) -> str:
    """The network with selective kernels that was trained beside a plain one."""
    return f"sk_{plain}@{FORMS[plain.partition('_')[0]]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Comparison):
    """Networks of one kind without and with selective kernels.

    Args:
        plain: The one without.
        occasion: What tells it from another comparison of the same networks.
    """

    plain: str
    occasion: str = ""

    @property
    def selective(self) -> str:
        """The network in question."""
        return selective(self.plain)

    def other(self, role: str) -> str | None:
        """The network of a role, if it is in the comparison."""
        arch = ROLES[role].format(plain=self.plain, sk=self.selective)
        return arch if arch in self.archs else None


def family(
    plain: str, *roles: str, epochs: int = EPOCHS, occasion: str = "", suffix: str = "", note: str = "", code: str = ""
) -> Family:
    """The networks of ``roles`` and SK; ``suffix`` tells record and runs from another comparison's of the same."""
    return Family(
        key=f"compare_{plain}{suffix}",
        title=f"`{plain}`{f', {occasion}' if occasion else ''}: {', '.join(roles)}, SK",
        archs={ROLES[role].format(plain=plain, sk=selective(plain)): role for role in roles} | {selective(plain): "SK"},
        output=f"{RUNS}{suffix}",
        epochs=epochs,
        occasion=occasion,
        plain=plain,
        note=note,
        code=code,
    )


def kernels(spec: str, *, select: bool) -> str:
    """A row of Tables 6 and 7 on the small network."""
    name = selective("shufflenetv2_0.5") + ("" if spec == "3+3d2" else f",kernels={spec}")
    return name if select else f"{name},select=false"


SMALL = family("shufflenetv2_0.5", *ROLES)
SMALL_FIRST = family(
    "shufflenetv2_0.5",
    "plain",
    "SE",
    "sum of the branches",
    "equal kernels",
    occasion="trained before",
    suffix="_before",
    code="683dceec4115",
    note="The same recipe and seeds as in the section above, trained two days before it. Its networks were not kept, "
    "so that they were trained again for their attention and for *one branch*. The sum of the branches came out better "
    "by more than its seeds vary. Seeds 0 and 1 of it, trained once more by the code of then on the machine of the "
    "section above, came to 81.60 and 82.43 ([record](../recipes/results/compare_shufflenetv2_0.5_before_sum.json)), "
    "not to the 80.07 and 78.33 of then: the same code and seed end elsewhere on another machine. An interval over "
    "seeds of one machine does not hold that, and both trainings are here to show how large it is.",
)
SMALL_LONGER = family(
    "shufflenetv2_0.5", "plain", epochs=LONGER, occasion=f"{LONGER} epochs", suffix=f"_{LONGER}_epochs"
)
LARGER = family("shufflenetv2_1.0", *ROLES)
# One branch is the plain network here, which has the activation already.
MOBILENET = family("mobilenetv2_0.5", "plain", "SE", "sum of the branches", "equal kernels")
FAMILIES = (SMALL, SMALL_FIRST, SMALL_LONGER, LARGER, MOBILENET)
# Called as in Table 7.
KERNELS = Comparison(
    key="compare_kernels",
    title=f"The kernels of Tables 6 and 7, in `{selective('shufflenetv2_0.5')}`",
    archs={
        kernels("3", select=False): "K3",
        kernels("3d2", select=False): "K5",
        kernels("3d3", select=False): "K7",
        kernels("3+3", select=True): "K3 + K3, SK",
        kernels("3+3d2", select=False): "K3 + K5, sum",
        kernels("3+3d2", select=True): "K3 + K5, SK",
        kernels("3+5", select=True): "K3 + dense 5x5, SK",
        kernels("3+3d3", select=False): "K3 + K7, sum",
        kernels("3+3d3", select=True): "K3 + K7, SK",
        kernels("3+7", select=True): "K3 + dense 7x7, SK",
        kernels("3d2+3d3", select=False): "K5 + K7, sum",
        kernels("3d2+3d3", select=True): "K5 + K7, SK",
        kernels("3+3d2+3d3", select=False): "K3 + K5 + K7, sum",
        kernels("3+3d2+3d3", select=True): "K3 + K5 + K7, SK",
    },
    seeds=(0, 1, 2),
    note="K3 is a 3x3, K5 and K7 are 3x3 of dilation 2 and 3, as in the paper's Table 7; *sum* adds the branches, *SK* "
    "selects. The first three seeds of the networks that the sections above have with five.",
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
    trained: Family
    is_control: bool = False

    @property
    def key(self) -> str:
        """What its record and plot are called."""
        suffix = self.trained.output.removeprefix(RUNS)
        return f"attention_{re.sub('[@=,]', '_', self.arch)}{suffix}"

    @property
    def title(self) -> str:
        """Heading."""
        occasion = f", {self.trained.occasion}" if self.trained.occasion else ""
        return f"`{self.arch}`{occasion}{', control: equal kernels' if self.is_control else ''}"

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        runs = [str(run_folder(self.trained.output, self.arch, seed)) for seed in self.trained.seeds]
        tail = ["--output", f"reports/{self.key}", "--record", f"recipes/results/{self.key}.json"]
        return ["recipes/attention.py", "--checkpoint", *runs, *tail]

    @property
    def wanted(self) -> dict[str, Any]:
        """What its record must say."""
        return {
            "arch": self.arch,
            "seeds": list(self.trained.seeds),
            "data": DATA,
            "recipe": DATA,
            "epochs": self.trained.epochs,
            "scales": list(SCALES),
            "images": IMAGES,
        }


WATCHED = (
    Watched(SMALL.selective, SMALL),
    Watched(f"{SMALL.selective},kernels=3+3", SMALL, is_control=True),
    Watched(SMALL_LONGER.selective, SMALL_LONGER),
    Watched(LARGER.selective, LARGER),
    Watched(f"{LARGER.selective},kernels=3+3", LARGER, is_control=True),
    Watched(MOBILENET.selective, MOBILENET),
    Watched(f"{MOBILENET.selective},kernels=3+3", MOBILENET, is_control=True),
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
    if isinstance(item, Comparison) and item.code:
        again = "it cannot be made again: restore it with git"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record | {"networks": [network["arch"] for network in record.get("networks", [])]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from None
    parts = {"commit"} | ({"units", "by_map"} if isinstance(item, Watched) else set())
    if missing := sorted(parts - record.keys()):
        raise InputError(f"{path} is damaged (it has no {', '.join(missing)}); {again}")
    for name, value in item.wanted.items():
        if found.get(name) != value:
            raise InputError(f"{path} has {name} {found.get(name)}, not {value}; {again}")
    return record
