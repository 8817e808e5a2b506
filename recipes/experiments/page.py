"""The page: the answers, how they were found, and every experiment with its numbers and its command."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.experiments import attention_summary as attention
from recipes.experiments import comparison
from recipes.experiments.plan import (
    COMPARISONS,
    FAMILIES,
    IMAGES,
    JOBS,
    KERNELS,
    ROLES,
    SMALL,
    SMALL_FIRST,
    SUMMED_AND_SELECTED,
    WATCHED,
    Comparison,
    Record,
    Watched,
    kernels,
)
from recipes.markdown_tables import markdown_table
from recipes.paper.tables import TABLES

INTRODUCTION = """\
# Evidence: does SK pay, and does the kernel choice follow the object?

The SKNet paper's claims, tested on data that every installation has. There is no ImageNet here: nothing on this page
says what happens there; [recipes/README.md](../recipes/README.md) has the commands for those who have it. Written by
`python recipes/evidence.py` from the records in `recipes/results`; a test compares it with them.
"""


def anchor(title: str) -> str:
    """The end of a link to a heading, as GitHub makes it."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


# The paper's, by the rows of its Tables 6 and 7.
ERRORS = {row.name: row.errors[0] for one in TABLES if one.key in ("6", "7") for row in one.rows}
EQUAL, DILATED = (ERRORS[f"3x3, D = {dilation}, G = 32"] for dilation in (1, 2))

METHOD = f"""\
## How it was done

- Data: `scaled_digits`, real handwritten digits (scikit-learn's, 8x8) drawn at 0.25 to 1.0 of a 96-pixel canvas, at a
  random place, amid pieces of other digits and noise. 5,748 training images of 1,437 digits; {IMAGES:,} test images
  of 360 other digits. The scale of every image is known; `--data scaled_digits@0.5` draws the same images at one
  scale.
- Training: [scaled_digits.yaml](../recipes/scaled_digits.yaml), the same for every network. Clutter, batch size and
  learning rate were set in a few trials of the plain `shufflenetv2_0.5`, seen on the test images; no other network
  was tried. **This favours the plain network.** Accuracy is that after the last epoch; no epoch or seed was selected.
- Five epochs are short, so a network that learns slowly is at a disadvantage.
- *Plain* is the network as published, *SE* has squeeze and excitation in the place of SK. In ShuffleNetV2 a
  selective kernel brings more than a choice: its branches have a ReLU where the plain network has none. *One
  branch* is the plain network with that ReLU; *sum of the branches* has both kernels and no choice; *equal
  kernels* has the choice, but between two identical 3x3 (Table 6, D = 1, where the paper has {EQUAL} % error for
  {DILATED} % of SK). In MobileNetV2 the plain network has the activation already. *SK* has a 3x3 and a 3x3 of
  dilation 2. It has as many parameters as *equal kernels*, and more than the sum, by its gate.
- At 96 pixels the maps are small: ShuffleNetV2's units work on 12x12, 6x6 and 3x3 pixels, MobileNetV2's on 48x48 to
  3x3, where at 224 pixels they work on 28x28 to 7x7 and 112x112 to 7x7. On 3x3 a kernel of dilation 2 has most of its
  taps outside, one of dilation 3 all but its centre. What happens there says nothing about the paper's last stage.
- Clutter is of small pieces: a digit of more than half the canvas has broader strokes than any of them, and the digit
  is always the brightest. Large digits can be told by looking closely, which no large kernel is needed for.
- A seed fixes the order and the images of every batch, and networks are compared seed by seed, with Student's 95 %
  interval over seeds. It covers training again on these images and this machine, not other test images. Initial
  weights are the same only up to the first layer in which two networks differ, so that the pairing takes out little of
  the noise.
- How far results repeat: one comparison was trained [twice](#{anchor(SMALL_FIRST.title)}). Take an interval that
  barely leaves out zero for what it is.
- *better*, *worse* and bold mean that the interval leaves out zero. Nothing is corrected for the number of
  comparisons: where there is no difference, one interval in twenty leaves out zero all the same. *not shown* means
  that there may be a difference or none.
- Times are wall-clock times of training on a shared machine, two runs at once: do not rank networks by them.
  [training.md](training.md) has what a step costs.
- To repeat: every section has its command, and `python recipes/evidence.py --commands` prints all. They write over
  the records: `git diff recipes/results` then shows how yours differ, `python recipes/evidence.py` draws the page
  from yours.
- The commits that records of today's code name differ, in what is trained here, in how the gradient of dilated
  convolutions is computed; it is the same to rounding, which a test holds. *+dirty*: a record of other results, not yet
  committed, lay beside the code.
"""

ATTENTION = """\
## Attention against the object's scale

Attention for the largest kernel minus that for the smallest, mean over channels and test images, by scale of the digit
(fraction of the canvas; the same digits in the same clutter at every scale). The paper's claim: it rises with the scale
in the early and middle units and not in the last. The shift is from the smallest scale to the largest, with Student's
95 % interval over the trained networks (seeds). *Size of the shift* is the mean of its absolute value over units, which
does not let units that move apart cancel: attention between two equal kernels can react to the scale too, in no
direction that means anything. That is what the controls are for; they cannot tell a choice that turns to the larger
kernel from one that grows weaker, for theirs has no side to leave.

A larger digit also has more ink, broader strokes, a place nearer the middle, and hides more clutter. Nothing here tells
these from its size.

In the plots: the attention of every unit by depth; its shift; and for the first unit on every map size the attention by
class, and by channel in the network of the first seed. Scales of the vertical axes differ.
"""


def as_text(command: Sequence[str]) -> str:
    """A command as typed."""
    return f"python {' '.join(command)}"


def as_code(command: Sequence[str]) -> str:
    """A command as a code block."""
    return f"```\n{as_text(command)}\n```"


def difference(record: Record, arch: str, other: str) -> str:
    """By how much ``arch`` beat ``other``, how surely."""
    networks = {entry["arch"]: entry for entry in record["networks"]}
    return as_points(comparison.paired(networks[arch], networks[other]))


def as_points(found: Mapping[str, Any]) -> str:
    """A paired difference with its interval, in bold where that leaves out zero."""
    gain, interval = f"{found['difference']:+.2f}", found["difference_ci95"]
    if interval is None:
        return f"{gain} (one seed)"
    shown = gain if comparison.verdict(found) == "not shown" else f"**{gain}**"
    return f"{shown} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def comparison_section(item: Comparison, records: Mapping[str, Record]) -> list[str]:
    """One comparison of the page."""
    lines = [f"## {item.title}", ""]
    if item.key not in records:
        return [*lines, "Not run yet.", "", as_code(item.command), ""]
    record = records[item.key]
    if item.note:
        lines += [item.note, ""]
    lines += [comparison.markdown(record["networks"], item.archs)]
    lines += [f"![Accuracy and paired differences](evidence/{item.key}.png)", ""]
    if item is SMALL_FIRST and SMALL.key in records:
        lines += repeated(records[SMALL.key], record)
    if item is KERNELS:
        lines += selected_against_summed(record)
    if item.code:
        return [*lines, f"{made_by(item.key, record)} Its command is in the record.", ""]
    hours = sum(network["seconds"] for network in record["networks"]) * len(item.seeds) / JOBS / 3600
    lines.append(
        f"{made_by(item.key, record)} To repeat it ({hours:.1f} hours on two such cores, less what another section has "
        "trained already):"
    )
    return [*lines, "", as_code(item.command), ""]


def repeated(again: Record, before: Record) -> list[str]:
    """How far two trainings of the same seeds lie apart."""
    first = {entry["arch"]: entry for entry in before["networks"]}
    pairs = [(first[entry["arch"]], entry) for entry in again["networks"] if entry["arch"] in first]
    runs = [abs(top1 - old["top1_by_seed"][seed]) for old, new in pairs for seed, top1 in new["top1_by_seed"].items()]
    rows = [
        [SMALL.archs[new["arch"]], f"{old['top1']:.2f}", f"{new['top1']:.2f}", as_points(comparison.paired(new, old))]
        for old, new in pairs
    ]
    return [
        markdown_table(["", "before, top-1 %", "above, top-1 %", "above minus before, points [95 % CI]"], rows),
        "",
        f"Run by run they differ by {statistics.median(runs):.1f} points in the median and by up to {max(runs):.1f}.",
        "",
    ]


def selected_against_summed(record: Record) -> list[str]:
    """What the selection itself brings, kernels being equal, here and in the paper."""
    top1 = {entry["arch"]: entry["top1"] for entry in record["networks"]}
    rows = []
    for name, spec in SUMMED_AND_SELECTED.items():
        selected, summed = kernels(spec, select=True), kernels(spec, select=False)
        shown = [f"{top1[summed]:.2f}", f"{top1[selected]:.2f}", difference(record, selected, summed)]
        rows.append([name, *shown, f"{ERRORS[f'{name}, sum']} / {ERRORS[f'{name}, SK']}"])
    head = ["kernels", "sum, top-1 %", "SK, top-1 %", "SK minus sum [95 % CI]", "paper's error %, sum / SK (ImageNet)"]
    low, high = zip(*(entry["difference_ci95"] for entry in record["networks"][1:]), strict=True)
    half = statistics.median((b - a) / 2 for a, b in zip(low, high, strict=True))
    return [
        markdown_table(head, rows),
        "",
        "Three seeds only, and those of K3, the baseline of the first table, lie far apart: half of its intervals "
        f"reach {half:.1f} points or more to either side, so that smaller differences do not show.",
        "",
    ]


GROUPS = (
    "map",
    "units",
    "smallest digits",
    "largest digits",
    "mean shift [95 % CI]",
    "size of the shift",
    "units by direction",
)


def made_by(key: str, record: Record) -> str:
    """Where the numbers are, and which code trained the networks."""
    commits = (
        f"trained at {', '.join(record['trained_at'])}" if "trained_at" in record else f"made at {record['commit']}"
    )
    return f"Record: [{key}.json](../recipes/results/{key}.json), {commits}."


def groups(record: Record) -> list[list[str]]:
    """A row for the units of each map size, in the order of depth: how far and where the attention moved."""
    units = {unit["name"]: unit for unit in record["units"]}
    rows = []
    for group in record["by_map"]:
        ways = [attention.direction(units[name]) for name in group["units"]]
        first, last = (
            statistics.fmean(units[name]["difference"][place] for name in group["units"]) for place in (0, -1)
        )
        shown = f"{group['shift']:+.3f}"
        low, high = group["shift_ci95"]
        rows.append(
            [
                "x".join(map(str, group["map"])),
                str(len(ways)),
                f"{first:+.3f}",
                f"{last:+.3f}",
                f"{f'**{shown}**' if low > 0 or high < 0 else shown} [{low:+.3f}, {high:+.3f}]",
                f"{group['magnitude']:.3f}",
                ", ".join(f"{way} {ways.count(way)}" for way in sorted(set(ways))),
            ]
        )
    return rows


def attention_section(item: Watched, record: Record | None) -> list[str]:
    """Attention of one network."""
    lines = [f"### {item.title}", ""]
    if record is None:
        return [*lines, "Not run yet.", "", as_code(item.command), ""]
    lines.append(markdown_table(GROUPS, groups(record)))
    lines += ["", attention.markdown(record), f"![Attention against scale](evidence/{item.key}.png)", ""]
    lines.append(
        f"{made_by(item.key, record)} To repeat it, once the command of "
        f"[its comparison](#{anchor(item.trained.title)}) has trained the networks:"
    )
    return [*lines, "", as_code(item.command), ""]


def in_short(records: Mapping[str, Record]) -> list[str]:
    """The answers, before how they were found."""
    lines = ["## In short", "", *does_it_pay(records), "", *does_it_follow(records), ""]
    missing = [item.title for item in COMPARISONS if item.key not in records]
    missing += [f"attention of {item.title}" for item in WATCHED if item.key not in records]
    return [*lines, f"Not run yet: {'; '.join(missing)}.", ""] if missing else lines


THAN = {
    "plain": "the plain network",
    "SE": "SE",
    "one branch": "the plain network with the branches' ReLU",
    "sum of the branches": "its own branches summed, without a choice",
    "equal kernels": "the choice between two equal kernels",
}


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
        name = f"`{item.selective}`{f', {item.occasion}' if item.occasion else ''}"
        cells = [name, str(item.epochs), str(len(item.seeds)), f"{sk['top1']:.2f}"]
        for role in ROLES:
            other = item.other(role)
            if other is not None and not item.code:
                verdicts[role].append(comparison.verdict(comparison.paired(sk, networks[other])))
            cells.append("" if other is None else difference(record, item.selective, other))
        rows.append(cells)
    if not rows:
        return ["**Does SK pay?** Not run yet."]
    return [
        "**Does SK pay?** By 95 % intervals over seeds, in the comparisons of today's code, SK is",
        "",
        *(f"- against {THAN[role]}: {count(found)}" for role, found in verdicts.items() if found),
        "",
        markdown_table(["network", "epochs", "seeds", "top-1 %", *(f"SK minus {role}" for role in ROLES)], rows),
        "",
        "Differences in points of test accuracy, positive where SK is better, with 95 % intervals over seeds; bold "
        "where the interval leaves out zero; empty where there is no such network. The recipe was tuned on the plain "
        "network and is short: [limits](#how-it-was-done).",
    ]


def count(verdicts: Sequence[str]) -> str:
    """How often each verdict was found."""
    found = [f"{name} in {verdicts.count(name)}" for name in ("better", "worse", "not shown") if name in verdicts]
    return f"{', '.join(found)} of {len(verdicts)}"


def does_it_follow(records: Mapping[str, Record]) -> list[str]:
    """Where the attention moved as the object grew, a row for each network and map size."""
    rows: list[list[str]] = []
    places: list[str] = []
    moved: dict[bool, list[str]] = {False: [], True: []}
    for item in WATCHED:
        if item.key not in records:
            continue
        record = records[item.key]
        rows += [[item.title, *row] for row in groups(record)]
        ways = [attention.direction(group) for group in record["by_map"]]
        moved[item.is_control] += ways
        maps = [cells[0] for cells, way in zip(groups(record), ways, strict=True) if way == "larger"]
        if maps and not item.is_control:
            places.append(f"{' and '.join(maps)} of {item.title}")
    if not rows:
        return ["**Does the attention move to the larger kernel as the object grows?** Not run yet."]
    selective, control = moved[False], moved[True]
    where = f" ({'; '.join(places)})" if places else ""
    larger, smaller = (f"to the {way} kernel in {selective.count(way)}" for way in ("larger", "smaller"))
    return [
        "**Does the attention move to the larger kernel as the object grows?** By the mean shift over the units of one "
        f"map size: {larger}{where}, {smaller}, not shown in {selective.count('not shown')} of {len(selective)}. In "
        "the controls, where no kernel is larger, a shift to one of the two is shown in "
        f"{len(control) - control.count('not shown')} of {len(control)}.",
        "",
        markdown_table(["network", *GROUPS], rows),
        "",
        "Attention for the larger kernel minus that for the smaller (controls: the last minus the first) lies between "
        "-1 and 1: above zero the larger is preferred. The shift is its change from the smallest digits to the "
        "largest; from below zero to zero it is a preference for the smaller kernel that fades. The paper has a shift "
        "in early and middle units and not in the last.",
    ]


def page(records: Mapping[str, Record]) -> str:
    """The whole page from the records of ``read_records``."""
    lines = [INTRODUCTION, *in_short(records), METHOD]
    for item in COMPARISONS:
        lines += comparison_section(item, records)
    lines.append(ATTENTION)
    for item in WATCHED:
        lines += attention_section(item, records.get(item.key))
    return "\n".join(lines).rstrip() + "\n"
