"""Write docs/evidence.md from the records in recipes/results: ``python recipes/evidence.py``.

The page and its plots hold nothing that is not in a record; what has no record is shown as not run, with its command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sk import attention
from edge_sk.errors import script
from edge_sk.files import write_text
from edge_sk.training import comparison

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "recipes" / "results"
PAGE = ROOT / "docs" / "evidence.md"
PLOTS = ROOT / "docs" / "evidence"
RUNS = "runs/scaled_digits"
SEEDS = (0, 1, 2, 3, 4)
LONGER = 15  # epochs

INTRODUCTION = """\
# Evidence: does SK pay, and does the kernel choice follow the object?

The SKNet paper's claims, tested on data that every installation has. There is no ImageNet here: nothing on this page
says what happens there; [recipes/README.md](../recipes/README.md) has the commands for those who have it. Written by
`python recipes/evidence.py` from the records in `recipes/results`; a test compares it with them.
"""

METHOD = """\
## How it was done

- Data: `scaled_digits`, real handwritten digits (scikit-learn's, 8x8) drawn at 0.25 to 1.0 of a 96-pixel canvas, at a
  random place, amid pieces of other digits and noise. 5,748 training images of 1,437 digits; 1,440 test images of 360
  other digits. The scale of every image is known; `--data scaled_digits@0.5` draws the same images at one scale.
- Training: [scaled_digits.yaml](../recipes/scaled_digits.yaml), the same for every network. Clutter and learning rate
  were set in three trials of the plain `shufflenetv2_0.5`, seen on the test images; no other network was tried.
  Accuracy is that after the last epoch; no epoch or seed was selected. The schedule is short: a network that learns
  slowly is at a disadvantage. The comparison with more epochs is there to tell how much of a difference is that.
- A seed fixes initial weights, the order and the images of every batch, and networks are compared seed by seed. The
  interval is Student's at 95 % over seeds. It holds for training again on these images, not for other test images, and
  it is not corrected for the number of comparisons.
- *better* and *worse* mean that the interval leaves out zero.
- Times are wall-clock times of training on a shared machine, two runs at once, and only rough.
- `python recipes/evidence.py --commands` prints every command behind this page.
"""

ATTENTION = """\
## Attention against the object's scale

Attention for the largest kernel minus that for the smallest, mean over channels and test images, by scale of the digit
(fraction of the canvas; the same digits in the same clutter at every scale). The paper's claim: it rises with the scale
in the early and middle units and not in the last. The shift is from the smallest scale to the largest, with Student's
95 % interval over the trained networks (seeds).
"""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison of the page: its record is ``compare_KEY.json``.

    Args:
        key: Name of the record and the plot.
        title: Heading.
        archs: Names and what the paper calls them; the first is the baseline.
        of_interest: The network that the verdict is about.
        epochs: ``None``: as many as the recipe has.
        seeds: Of its runs.
    """

    key: str
    title: str
    archs: Mapping[str, str]
    of_interest: str
    epochs: int | None = None
    seeds: tuple[int, ...] = SEEDS

    @property
    def output(self) -> str:
        """Where its runs go."""
        return RUNS if self.epochs is None else f"{RUNS}_{self.epochs}"

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        schedule = [] if self.epochs is None else ["--set", f"schedule.epochs={self.epochs}"]
        seeds = ["--seeds", *map(str, self.seeds)]
        record = f"recipes/results/compare_{self.key}.json"
        tail = ["--jobs", "2", "--device", "cpu", "--output", self.output, "--record", record]
        return ["recipes/compare.py", "--arch", *self.archs, *schedule, *seeds, *tail]

    def run(self, arch: str, seed: int) -> str:
        """Folder of one training."""
        return f"{self.output}/runs/{arch}-seed{seed}"


# What SK is compared with, by how it is called on the page.
ROLES = {
    "plain": ("{}", "plain"),
    "SE": ("se_{}", "squeeze and excitation"),
    "sum of the branches": ("sk_{}@select=false", "control: the branches are summed, nothing is selected"),
    "equal kernels": (
        "sk_{}@kernels=3+3",
        "control: selection between two identical 3x3 (the paper's row of 20.91)",
    ),
}


@dataclasses.dataclass(frozen=True)
class Family(Comparison):
    """Networks of one kind without and with selective kernels."""

    plain: str = ""

    def other(self, role: str) -> str:
        """The network of a role."""
        return ROLES[role][0].format(self.plain)


def family(plain: str, *roles: str, epochs: int | None = None) -> Family:
    """The networks of ``roles`` and SK."""
    schedule = "" if epochs is None else f"_{epochs}_epochs"
    return Family(
        key=f"{plain}{schedule}",
        title=f"`{plain}`{'' if epochs is None else f', {epochs} epochs'}: {', '.join(roles)}, SK",
        archs={ROLES[role][0].format(plain): ROLES[role][1] for role in roles}
        | {f"sk_{plain}": "selective kernels, 3x3 and a 3x3 of dilation 2"},
        of_interest=f"sk_{plain}",
        epochs=epochs,
        plain=plain,
    )


def kernels(spec: str, *, select: bool) -> str:
    """A row of Tables 6 and 7 on the small network."""
    name = "sk_shufflenetv2_0.5"
    if select:
        return name if spec == "3+3d2" else f"{name}@kernels={spec}"
    return f"{name}@select=false" if spec == "3+3d2" else f"{name}@kernels={spec},select=false"


SMALL, LARGER, MOBILENET = (
    family(plain, *ROLES) for plain in ("shufflenetv2_0.5", "shufflenetv2_1.0", "mobilenetv2_0.5")
)
SMALL_LONGER = family("shufflenetv2_0.5", "plain", "SE", epochs=LONGER)
FAMILIES = (SMALL, SMALL_LONGER, LARGER, MOBILENET)
KERNELS = Comparison(
    "kernels",
    "The kernels of Tables 6 and 7, in `sk_shufflenetv2_0.5`",
    {
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
    kernels("3+3d2", select=True),
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
        remark: What to know about it.
    """

    arch: str
    trained: Comparison
    remark: str = ""

    @property
    def key(self) -> str:
        """What its record and plot are called."""
        schedule = "" if self.trained.epochs is None else f"_{self.trained.epochs}_epochs"
        return f"attention_{self.arch.replace('@', '_').replace('=', '_')}{schedule}"

    @property
    def title(self) -> str:
        """Heading."""
        schedule = "" if self.trained.epochs is None else f", {self.trained.epochs} epochs"
        return f"`{self.arch}`{schedule}{self.remark}"

    @property
    def command(self) -> list[str]:
        """Its command line, without ``python``."""
        runs = [self.trained.run(self.arch, seed) for seed in self.trained.seeds]
        tail = ["--output", f"reports/{self.key}", "--record", f"recipes/results/{self.key}.json"]
        return ["recipes/attention.py", "--checkpoint", *runs, *tail]


WATCHED = (
    Watched("sk_shufflenetv2_0.5", SMALL_LONGER),
    Watched("sk_shufflenetv2_0.5", SMALL),
    Watched("sk_shufflenetv2_0.5@kernels=3+3", SMALL, " (control: two identical 3x3)"),
    Watched("sk_shufflenetv2_1.0", LARGER),
    Watched("sk_mobilenetv2_0.5", MOBILENET),
)


def read(key: str) -> dict[str, Any] | None:
    """A record; ``None`` when there is none."""
    path = RESULTS / f"{key}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def as_code(command: Sequence[str]) -> str:
    """A command as a code block."""
    return f"```\npython {' '.join(command)}\n```"


def difference(record: Mapping[str, Any], arch: str, other: str) -> str:
    """By how much ``arch`` beat ``other``, how surely; in bold where the interval leaves out zero."""
    networks = {entry["arch"]: entry for entry in record["networks"]}
    found = comparison.paired(networks[arch], networks[other])
    gain, interval = f"{found['difference']:+.2f}", found["difference_ci95"]
    if interval is None:
        return f"{gain} (one seed)"
    shown = gain if comparison.verdict(found) == "not shown" else f"**{gain}**"
    return f"{shown} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def comparison_section(item: Comparison) -> list[str]:
    """One comparison of the page."""
    record = read(f"compare_{item.key}")
    lines = [f"## {item.title}", ""]
    if record is None:
        return [*lines, "Not run yet.", "", as_code(item.command), ""]
    lines += [comparison.markdown(record["networks"])]
    lines += [f"- `{arch}`: {meaning}" for arch, meaning in item.archs.items()]
    lines += ["", f"![Accuracy and paired differences](evidence/compare_{item.key}.png)", ""]
    if item is KERNELS:
        lines += selected_against_summed(record)
    lines += [f"Record: [compare_{item.key}.json](../recipes/results/compare_{item.key}.json). Again:", ""]
    return [*lines, as_code(item.command), ""]


def selected_against_summed(record: Mapping[str, Any]) -> list[str]:
    """What the selection itself brings, kernels being equal."""
    rows = [
        [name, difference(record, kernels(spec, select=True), kernels(spec, select=False))]
        for name, spec in SUMMED_AND_SELECTED.items()
    ]
    return [*table(["kernels", "selected, to summed: points [95 % CI]"], rows), ""]


def directions(units: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[Mapping[str, Any]], str]]:
    """For each third of the depth: its name, its units, and where their attention moved as the object grew."""
    third = -(-len(units) // 3)
    found = []
    for place, part in (("first", units[:third]), ("middle", units[third : 2 * third]), ("last", units[2 * third :])):
        ways = [attention.direction(unit) for unit in part]
        found.append((place, part, ", ".join(f"{ways.count(way)} {way}" for way in ("larger", "smaller", "neither"))))
    return found


def attention_section(item: Watched) -> list[str]:
    """Attention of one network."""
    record = read(item.key)
    lines = [f"### {item.title}", ""]
    if record is None:
        return [*lines, "Not run yet.", "", as_code(item.command), ""]
    lines += [
        f"- {place} third of the depth, {len(part)} units: {sentence}"
        for place, part, sentence in directions(record["units"])
    ]
    lines += ["", attention.markdown(record), f"![Attention against scale](evidence/{item.key}.png)", ""]
    lines += [f"Record: [{item.key}.json](../recipes/results/{item.key}.json). Again:", ""]
    return [*lines, as_code(item.command), ""]


def in_short() -> list[str]:
    """The answers, before how they were found."""
    lines = ["## In short", "", *does_it_pay(), "", *does_it_follow(), ""]
    missing = [item.title for item in COMPARISONS if read(f"compare_{item.key}") is None]
    missing += [f"attention of {item.title}" for item in WATCHED if read(item.key) is None]
    return [*lines, f"Not run yet: {'; '.join(missing)}.", ""] if missing else lines


def does_it_pay() -> list[str]:
    """SK against what it is compared with, a row for each comparison."""
    rows, verdicts = [], []
    for item in FAMILIES:
        record = read(f"compare_{item.key}")
        if record is None:
            continue
        networks = {entry["arch"]: entry for entry in record["networks"]}
        sk = networks[item.of_interest]
        verdicts.append(comparison.verdict(comparison.paired(sk, networks[item.plain])))
        differences = [
            difference(record, item.of_interest, item.other(role)) if item.other(role) in networks else "-"
            for role in ROLES
        ]
        rows.append([f"`{item.of_interest}`", str(record["epochs"]), f"{sk['top1']:.2f}", *differences])
    head = ["network", "epochs", "top-1 %", *(f"to {role}" for role in ROLES)]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    return [
        f"**Does SK pay?** Against the plain network: better in {better} of {len(verdicts)} comparisons, worse in "
        f"{worse}, no difference shown in {len(verdicts) - better - worse}. Differences in points of test accuracy, "
        "with their 95 % intervals over seeds; bold where the interval leaves out zero.",
        "",
        *table(head, rows),
    ]


def does_it_follow() -> list[str]:
    """Where the attention moved as the object grew, a row for each network."""
    rows = []
    for item in WATCHED:
        record = read(item.key)
        if record is not None:
            rows.append([item.title, str(len(record["units"])), *(way for _, _, way in directions(record["units"]))])
    return [
        "**Does the attention move to the larger kernel as the object grows?** Units that moved to the *larger* "
        "kernel, to the *smaller*, or to *neither* (the interval holds zero), by depth.",
        "",
        *table(["network", "units", "first third", "middle third", "last third"], rows),
    ]


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION, *in_short(), METHOD]
    for item in COMPARISONS:
        lines += comparison_section(item)
    lines.append(ATTENTION)
    for item in WATCHED:
        lines += attention_section(item)
    return "\n".join(lines).rstrip() + "\n"


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its plots, or print the commands behind them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--commands", action="store_true", help="print the commands that make the records, and stop")
    args = parser.parse_args(argv)
    if args.commands:
        for item in (*COMPARISONS, *WATCHED):
            print("python " + " ".join(item.command))
        return 0
    for item in COMPARISONS:
        record = read(f"compare_{item.key}")
        if record is not None:
            title = f"{record['data']}, {record['epochs']} epochs, seeds {', '.join(map(str, record['seeds']))}"
            comparison.plot(record["networks"], PLOTS / f"compare_{item.key}.png", title=title)
    for item in WATCHED:
        record = read(item.key)
        if record is not None:
            attention.plot(record, PLOTS / f"{item.key}.png", title=item.title.replace("`", ""))
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
