"""The page: the answers, how they were found, and every experiment with its numbers and its command."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from edge_sk import attention
from edge_sk.evidence.experiments import (
    COMPARISONS,
    FAMILIES,
    KERNELS,
    ROLES,
    SEEDS,
    SUMMED_AND_SELECTED,
    WATCHED,
    Comparison,
    Record,
    Watched,
    kernels,
)
from edge_sk.training import comparison

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
- Training: [scaled_digits.yaml](../recipes/scaled_digits.yaml), the same for every network. Clutter, batch size and
  learning rate were set in a few trials of the plain `shufflenetv2_0.5`, seen on the test images; no other network was
  tried. **This favours the plain network.** Accuracy is that after the last epoch; no epoch or seed was selected.
- The schedule is short, so a network that learns slowly is at a disadvantage. The comparison with more epochs is there
  to tell how much of a difference is that.
- In ShuffleNetV2 a selective kernel brings more than a choice: its branches have a ReLU where the plain network has
  none. *One branch* is the plain network with that ReLU, *sum of the branches* has both kernels and no choice, *equal
  kernels* the choice without a difference to choose. In MobileNetV2 the plain network has the activation already.
- At 96 pixels the maps are small: ShuffleNetV2's units work on 12x12, 6x6 and 3x3 pixels, where the paper's work on
  28x28 to 7x7. On 3x3 a kernel of dilation 2 has most of its taps outside, one of dilation 3 all but its centre. What
  happens there says nothing about the paper's last stage.
- A seed fixes initial weights, the order and the images of every batch, and networks are compared seed by seed. The
  interval is Student's at 95 % over seeds. It holds for training again on these images, not for other test images. The
  same seed can end elsewhere on another processor, whose rounding differs: expect the intervals again, not the digits.
- *better*, *worse* and bold mean that the interval leaves out zero. Nothing is corrected for the number of
  comparisons: where there is no difference, one interval in twenty leaves out zero all the same.
- Times are wall-clock times of training on a shared machine, two runs at once: the order of networks in them can be
  wrong. [training.md](training.md) has what a step costs.
- `python recipes/evidence.py --commands` prints every command behind this page.
"""

ATTENTION = """\
## Attention against the object's scale

Attention for the largest kernel minus that for the smallest, mean over channels and test images, by scale of the digit
(fraction of the canvas; the same digits in the same clutter at every scale). The paper's claim: it rises with the scale
in the early and middle units and not in the last. The shift is from the smallest scale to the largest, with Student's
95 % interval over the trained networks (seeds). *Size of the shift* is the mean of its absolute value over units, which
does not let units that move apart cancel: attention between two equal kernels can react to the scale too, in no
direction that means anything.

A larger digit also has more ink, broader strokes and a place nearer the middle. Nothing here tells these from its size.
"""


def as_text(command: Sequence[str]) -> str:
    """A command as typed."""
    return f"python {' '.join(command)}"


def as_code(command: Sequence[str]) -> str:
    """A command as a code block."""
    return f"```\n{as_text(command)}\n```"


def difference(record: Record, arch: str, other: str) -> str:
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


def comparison_section(item: Comparison, record: Record | None) -> list[str]:
    """One comparison of the page."""
    lines = [f"## {item.title}", ""]
    if record is None:
        return [*lines, "Not run yet.", "", as_code(item.command), ""]
    lines += [comparison.markdown(record["networks"])]
    lines += [f"- `{arch}`: {meaning}" for arch, meaning in item.archs.items()]
    lines += ["", f"![Accuracy and paired differences](evidence/{item.key}.png)", ""]
    if len(item.seeds) < len(SEEDS):
        low, high = zip(*(entry["difference_ci95"] for entry in record["networks"][1:]), strict=True)
        half = statistics.median((b - a) / 2 for a, b in zip(low, high, strict=True))
        lines += [
            f"{len(item.seeds)} seeds only: half of the intervals reach {half:.1f} points or more to either side, so "
            "that smaller differences do not show.",
            "",
        ]
    if item is KERNELS:
        lines += selected_against_summed(record)
    lines += [made_by(item.key, record), ""]
    return [*lines, as_code(item.command), ""]


def selected_against_summed(record: Record) -> list[str]:
    """What the selection itself brings, kernels being equal."""
    rows = [
        [name, difference(record, kernels(spec, select=True), kernels(spec, select=False))]
        for name, spec in SUMMED_AND_SELECTED.items()
    ]
    return [*table(["kernels", "selected, to summed: points [95 % CI]"], rows), ""]


GROUPS = ("map", "units", "mean shift [95 % CI]", "size of the shift", "units that moved to the")


def made_by(key: str, record: Record) -> str:
    """Where the numbers are, and which code trained the networks."""
    return f"Record: [{key}.json](../recipes/results/{key}.json), trained at {', '.join(record['trained_at'])}. Again:"


def groups(record: Record) -> list[list[str]]:
    """A row for the units of each map size, in the order of depth: how far and where the attention moved."""
    units = {unit["name"]: unit for unit in record["units"]}
    rows = []
    for group in record["by_map"]:
        ways = [attention.direction(units[name]) for name in group["units"]]
        shown = f"{group['shift']:+.3f}"
        low, high = group["shift_ci95"]
        rows.append(
            [
                "x".join(map(str, group["map"])),
                str(len(ways)),
                f"{f'**{shown}**' if low > 0 or high < 0 else shown} [{low:+.3f}, {high:+.3f}]",
                f"{group['magnitude']:.3f}",
                ", ".join(f"{ways.count(way)} {way}" for way in sorted(set(ways))),
            ]
        )
    return rows


def attention_section(item: Watched, record: Record | None) -> list[str]:
    """Attention of one network."""
    lines = [f"### {item.title}", ""]
    if record is None:
        return [*lines, "Not run yet.", "", as_code(item.command), ""]
    lines += table(GROUPS, groups(record))
    lines += ["", attention.markdown(record), f"![Attention against scale](evidence/{item.key}.png)", ""]
    lines += [made_by(item.key, record), ""]
    return [*lines, as_code(item.command), ""]


def in_short(records: Mapping[str, Record]) -> list[str]:
    """The answers, before how they were found."""
    lines = ["## In short", "", *does_it_pay(records), "", *does_it_follow(records), ""]
    missing = [item.title for item in COMPARISONS if item.key not in records]
    missing += [f"attention of {item.title}" for item in WATCHED if item.key not in records]
    return [*lines, f"Not run yet: {'; '.join(missing)}.", ""] if missing else lines


def count(verdicts: Sequence[str]) -> str:
    """How often SK was better and worse."""
    better, worse, neither = (verdicts.count(name) for name in ("better", "worse", "not shown"))
    return f"better in {better}, worse in {worse}, no difference shown in {neither}"


def does_it_pay(records: Mapping[str, Record]) -> list[str]:
    """SK against what it is compared with, a row for each comparison."""
    rows: list[list[str]] = []
    verdicts: dict[str, list[str]] = {role: [] for role in ROLES}
    for item in FAMILIES:
        if item.key not in records:
            continue
        record = records[item.key]
        networks = {entry["arch"]: entry for entry in record["networks"]}
        sk = networks[item.selective]
        cells = [f"`{item.selective}`", str(record["epochs"]), f"{sk['top1']:.2f}"]
        for role in ROLES:
            other = item.other(role)
            if other is not None:
                verdicts[role].append(comparison.verdict(comparison.paired(sk, networks[other])))
            cells.append("-" if other is None else difference(record, item.selective, other))
        rows.append(cells)
    if not rows:
        return ["**Does SK pay?** Not run yet."]
    return [
        f"**Does SK pay?** Against the plain network: {count(verdicts['plain'])} of the comparisons below. Against SE: "
        f"{count(verdicts['SE'])}. Against its own branches summed, which is what the selection itself brings: "
        f"{count(verdicts['sum of the branches'])}.",
        "",
        *table(["network", "epochs", "top-1 %", *(f"to {role}" for role in ROLES)], rows),
        "",
        "Differences in points of test accuracy, SK less the other, with 95 % intervals over seeds; bold where the "
        "interval leaves out zero.",
    ]


def does_it_follow(records: Mapping[str, Record]) -> list[str]:
    """Where the attention moved as the object grew, a row for each network and map size."""
    rows: list[list[str]] = []
    moved: list[str] = []
    for item in WATCHED:
        if item.key not in records:
            continue
        record = records[item.key]
        rows += [[item.title, *row] for row in groups(record)]
        if not item.is_control:
            moved += [attention.direction(group) for group in record["by_map"]]
    if not rows:
        return ["**Does the attention move to the larger kernel as the object grows?** Not run yet."]
    larger, smaller = moved.count("larger"), moved.count("smaller")
    return [
        "**Does the attention move to the larger kernel as the object grows?** By the mean shift over the units of one "
        f"map size, controls left out: to the larger kernel in {larger}, to the smaller in {smaller}, neither in "
        f"{len(moved) - larger - smaller}.",
        "",
        *table(["network", *GROUPS], rows),
        "",
        "Shift of the attention for the larger kernel minus that for the smaller, which lies between -1 and 1.",
    ]


def page(records: Mapping[str, Record]) -> str:
    """The whole page from the records of ``read_records``."""
    lines = [INTRODUCTION, *in_short(records), METHOD]
    for item in COMPARISONS:
        lines += comparison_section(item, records.get(item.key))
    lines.append(ATTENTION)
    for item in WATCHED:
        lines += attention_section(item, records.get(item.key))
    return "\n".join(lines).rstrip() + "\n"
