"""Networks trained by one recipe on the same seeds, compared in pairs."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sk.confidence import deviation, mean, mean_interval
from edge_sk.errors import InputError
from edge_sk.files import atomic_write
from edge_sk.training.checkpoint import CONFIG, WEIGHTS, load_config
from edge_sk.training.metrics import CSV
from edge_sk.training.recipe import Recipe
from edge_sk.training.runs import MANIFEST, RECIPE, file_name, recipe_differences, saved_manifest, saved_recipe


def run_folder(output: str | Path, arch: str, seed: int) -> Path:
    """Where a comparison in ``output`` trains ``arch`` with ``seed``."""
    return Path(output) / "runs" / f"{file_name(arch)}-seed{seed}"


@dataclass(frozen=True)
class Finished:
    """What a finished run came to."""

    top1: float
    """Per cent of the test images, after the last epoch."""
    seconds: float
    """Training time, evaluation and pauses not counted."""


def read_finished(folder: Path, recipe: Recipe, *, arch: str, data: str) -> Finished | None:
    """The result of a run folder; ``None`` when it is not there or not finished.

    Raises:
        InputError: The folder is of another architecture, data set or recipe.
    """
    if not all((folder / name).is_file() for name in (RECIPE, CONFIG, MANIFEST)):
        return None
    config = load_config(folder)
    differences = recipe_differences(saved_recipe(folder), recipe)
    for name, saved, wanted in (("architecture", config.arch, arch), ("data", config.data, data)):
        if saved != wanted:
            differences.append(f"{name}: {saved} -> {wanted}")
    if differences:
        raise InputError(f"{folder} is of another comparison ({'; '.join(differences)}): give another --output")
    if not (folder / WEIGHTS).is_file() or not (folder / CSV).is_file():
        return None
    with (folder / CSV).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or int(float(rows[-1]["epoch"])) < recipe.schedule.epochs:
        return None
    return Finished(float(rows[-1]["test_top1"]), float(rows[-1]["seconds"]))


def independent_seeds(folders: Sequence[str | Path]) -> list[int]:
    """The seeds of trained runs that differ in nothing else: a sample, over which there is an interval.

    Raises:
        InputError: Two differ in architecture, data or recipe, or have the same seed.
    """
    first, seeds = folders[0], list[int]()
    config, recipe = load_config(first), saved_recipe(first)
    for folder in folders:
        other = load_config(folder)
        differences = [
            f"{name}: {getattr(config, name)} -> {getattr(other, name)}"
            for name in ("arch", "data", "num_classes", "classes")
            if getattr(config, name) != getattr(other, name)
        ]
        differences += recipe_differences(recipe, saved_recipe(folder))
        if differences:
            raise InputError(f"{folder} is another training than {first} ({'; '.join(differences)}): give seeds of one")
        seed = saved_manifest(folder)["seed"]
        if seed in seeds:
            raise InputError(f"{folder} has seed {seed}, as {folders[seeds.index(seed)]}: give each seed once")
        seeds.append(seed)
    return seeds


def compare(
    results: Mapping[str, Mapping[int, Finished]], costs: Mapping[str, tuple[int, int]]
) -> list[dict[str, Any]]:
    """One entry per network; differences are to the first, seed by seed.

    A seed fixes initial weights, order and augmentation, so two networks of one seed see the same batches. The
    interval is Student's at 95 % over seeds: it holds for training again on the same images, not for new test images.

    Args:
        results: Network, seed, result; every network with the same seeds.
        costs: Parameters and MACs of each network.
    """
    baseline = next(iter(results))
    entries = []
    for arch, runs in results.items():
        if runs.keys() != results[baseline].keys():
            raise InputError(f"{arch} was run with seeds {sorted(runs)}, {baseline} with {sorted(results[baseline])}")
        top1 = [run.top1 for run in runs.values()]
        entry: dict[str, Any] = {
            "arch": arch,
            "params": costs[arch][0],
            "macs": costs[arch][1],
            "top1": _digits(mean(top1)),
            "top1_deviation": _digits(deviation(top1)),
            "top1_by_seed": {str(seed): _digits(run.top1) for seed, run in runs.items()},
            "seconds": round(statistics.median(run.seconds for run in runs.values()), 1),
        }
        if arch != baseline:
            entry |= paired(entry, entries[0])
        entries.append(entry)
    return entries


def paired(entry: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``difference`` of ``entry`` to ``other`` in points, seed by seed: mean, interval at 95 %, every seed's."""
    differences = {seed: top1 - other["top1_by_seed"][seed] for seed, top1 in entry["top1_by_seed"].items()}
    low, high = mean_interval(list(differences.values()))
    return {
        "difference": _digits(mean(list(differences.values()))),
        # JSON has no infinity: one seed has no interval.
        "difference_ci95": None if math.isinf(high) else [_digits(low), _digits(high)],
        "difference_by_seed": {seed: _digits(value) for seed, value in differences.items()},
    }


def _digits(value: float) -> float:
    return round(value, 4)


def verdict(entry: Mapping[str, Any]) -> str:
    """``better``, ``worse`` or ``not shown``: whether the interval of the difference leaves out zero."""
    interval = entry["difference_ci95"]
    if interval is None:
        return "not shown"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "not shown"


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as a table."""
    seeds = len(entries[0]["top1_by_seed"])
    lines = [
        f"| network | top-1 %, mean of {seeds} seeds | std | to the first, points | 95 % CI | difference "
        "| params | MACs | training s, median |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for entry in entries:
        cells = [f"`{entry['arch']}`", f"{entry['top1']:.2f}", f"{entry['top1_deviation']:.2f}"]
        if "difference" in entry:
            interval = entry["difference_ci95"]
            shown = "-" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"
            cells += [f"{entry['difference']:+.2f}", shown, verdict(entry)]
        else:
            cells += ["-", "-", "-"]
        cells += [f"{entry['params'] / 1e6:.3f} M", f"{entry['macs'] / 1e6:.2f} M", f"{entry['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(entries: Sequence[Mapping[str, Any]], path: str | Path, *, title: str) -> None:
    """Draw the comparison as PNG: accuracy of every seed, and the paired differences with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [entry["arch"] for entry in entries]
    figure = Figure(figsize=(13, 1.6 + 0.45 * len(entries)), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, difference = figure.subplots(1, 2, sharey=True)
    rows = range(len(entries))
    for seed in entries[0]["top1_by_seed"]:
        accuracy.plot([entry["top1_by_seed"][seed] for entry in entries], rows, color="grey", linewidth=0.4, marker=".")
    accuracy.plot([entry["top1"] for entry in entries], rows, "D", color="C0")
    accuracy.set_yticks(rows, names, fontsize=8)
    accuracy.invert_yaxis()
    accuracy.set_xlabel("test top-1 (%): seeds (joined) and mean")
    for row, entry in enumerate(entries):
        if "difference" not in entry:
            continue
        low, high = entry["difference_ci95"] or (entry["difference"],) * 2
        colour = {"better": "C2", "worse": "C3", "not shown": "grey"}[verdict(entry)]
        error = [[entry["difference"] - low], [high - entry["difference"]]]
        difference.errorbar(entry["difference"], row, xerr=error, fmt="o", color=colour, capsize=3)
    difference.axvline(0, color="black", linewidth=0.8)
    difference.set_xlabel(f"paired difference to {names[0]}\n(points), 95 % CI over seeds")
    for axes in (accuracy, difference):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
