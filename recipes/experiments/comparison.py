"""Compare networks that one recipe trained on the same seeds: results, paired differences, table and plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError
from edge_sk.files import atomic_write
from edge_sk.training.recipe import FREE, Recipe, settings
from edge_sk.training.run import CONFIG, MANIFEST, RECIPE, load_config, load_run, read_csv, saved_manifest, saved_recipe
from recipes.experiments.confidence import mean_interval
from recipes.markdown_tables import markdown_table
from recipes.planning import file_name


def run_folder(output: str | Path, arch: str, seed: int) -> Path:
    """Return the folder in which a comparison trains ``arch`` with ``seed``."""
    return Path(output) / "runs" / f"{file_name(arch)}-seed{seed}"


def recipe_differences(a: Recipe, b: Recipe) -> list[str]:
    """``key: a -> b`` for every field that is not free and in which two recipes differ."""
    left, right = settings(a), settings(b)
    return [f"{key}: {left[key]} -> {right[key]}" for key in left if key not in FREE and left[key] != right[key]]


def trained_at(folder: str | Path) -> set[str]:
    """The commits of the code that trained a run: several where another version continued it."""
    first = saved_manifest(folder)
    return {str(part.get("commit")) for part in (first, *first.get("resumed", []))}


@dataclass(frozen=True)
class Finished:
    """The result of a finished run."""

    top1: float
    """Per cent of the test images, after the last epoch."""
    seconds: float
    """Training time, evaluation and pauses not counted."""


def read_finished(folder: Path, recipe: Recipe, *, arch: str, data: str) -> Finished | None:
    """Read the result of a run folder; return ``None`` if there is none or it is not finished.

    Raises:
        InputError: The folder is of another architecture, data set or recipe, or damaged.
    """
    if not all((folder / name).is_file() for name in (RECIPE, CONFIG, MANIFEST)):
        return None
    config = load_config(folder)
    trained_at(folder)  # the manifest, which the comparison needs when all runs are finished
    differences = recipe_differences(saved_recipe(folder), recipe)
    for name, saved, wanted in (("architecture", config.arch, arch), ("data", config.data, data)):
        if saved != wanted:
            differences.append(f"{name}: {saved} -> {wanted}")
    if differences:
        raise InputError(f"{folder} is of another comparison ({'; '.join(differences)}): give another --output")
    return _result(folder, recipe)


def _result(folder: Path, recipe: Recipe) -> Finished | None:
    rows = read_csv(folder)
    if not rows or rows[-1]["epoch"] < recipe.schedule.epochs or "val_top1" not in rows[-1]:
        return None
    try:
        load_run(folder)
    except InputError:
        return None  # train.py --resume writes the weights of its checkpoint again
    return Finished(rows[-1]["val_top1"], rows[-1]["seconds"])


def epochs_trained(folder: str | Path) -> int | None:
    """Return the number of epochs that a run was trained; ``None`` if it has no record of them."""
    rows = read_csv(folder)
    return int(rows[-1]["epoch"]) if rows else None


def independent_seeds(folders: Sequence[str | Path]) -> list[int]:
    """Check that trained runs differ only in the seed, and return their seeds.

    Raises:
        InputError: One of several is not finished, two differ in architecture, data or recipe, or have the same seed.
    """
    first, seeds = folders[0], list[int]()
    config, recipe = load_config(first), saved_recipe(first)
    for folder in folders:
        if len(folders) > 1 and _result(Path(folder), saved_recipe(folder)) is None:
            resume = f"python recipes/train.py --arch {config.arch} --output {folder} --resume"
            raise InputError(f"{folder} is not finished; continue it: {resume}")
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
    results: Mapping[str, Mapping[int, Finished]], costs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one entry per network, with its differences to the first, seed by seed.

    A seed fixes order and augmentation, so two networks of one seed see the same batches. Their initial weights are
    equal only up to the first layer in which they differ. The interval is Student's at 95 % over seeds: it covers
    training again on the same images, not new test images.

    Args:
        results: Results by network and seed; every network has the same seeds.
        costs: ``params`` and ``macs`` of each network, and further fields of its entry.
    """
    baseline = next(iter(results))
    entries = []
    for arch, runs in results.items():
        if runs.keys() != results[baseline].keys():
            raise InputError(f"{arch} was run with seeds {sorted(runs)}, {baseline} with {sorted(results[baseline])}")
        top1 = [run.top1 for run in runs.values()]
        entry: dict[str, Any] = {
            "arch": arch,
            **costs[arch],
            "top1": _digits(statistics.fmean(top1)),
            "top1_deviation": _digits(statistics.stdev(top1) if len(top1) > 1 else 0.0),
            "top1_by_seed": {str(seed): _digits(run.top1) for seed, run in runs.items()},
            "seconds": round(statistics.median(run.seconds for run in runs.values()), 1),
        }
        if arch != baseline:
            entry |= paired(entry, entries[0])
        entries.append(entry)
    return entries


def paired(entry: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference of ``entry`` to ``other`` in points: mean, 95 % interval, and that of every seed."""
    differences = {seed: top1 - other["top1_by_seed"][seed] for seed, top1 in entry["top1_by_seed"].items()}
    low, high = mean_interval(list(differences.values()))
    return {
        "difference": _digits(statistics.fmean(differences.values())),
        # JSON has no infinity: one seed has no interval.
        "difference_ci95": None if math.isinf(high) else [_digits(low), _digits(high)],
        "difference_by_seed": {seed: _digits(value) for seed, value in differences.items()},
    }


def _digits(value: float) -> float:
    return round(value, 4)


def verdict(entry: Mapping[str, Any]) -> str:
    """Return ``better`` or ``worse`` if the interval of the difference excludes zero, else ``not shown``."""
    interval = entry["difference_ci95"]
    if interval is None:
        return "not shown"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "not shown"


def markdown(entries: Sequence[Mapping[str, Any]], labels: Mapping[str, str] | None = None) -> str:
    """Return the comparison as a table.

    Args:
        entries: From ``compare``.
        labels: Names of the networks, for a column of their own.
    """
    seeds = len(entries[0]["top1_by_seed"])
    header = ["network", f"top-1 %, mean of {seeds} seeds", "std", "to the first, points", "95 % CI", "verdict"]
    header += ["params", "MACs", "training s, median"]
    rows = []
    for entry in entries:
        cells = [f"`{entry['arch']}`", f"{entry['top1']:.2f}", "-" if seeds == 1 else f"{entry['top1_deviation']:.2f}"]
        if "difference" in entry:
            interval = entry["difference_ci95"]
            shown = "-" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"
            cells += [f"{entry['difference']:+.2f}", shown, verdict(entry)]
        else:
            cells += ["-", "-", "-"]
        cells += [f"{entry['params'] / 1e6:.3f} M", f"{entry['macs'] / 1e6:.2f} M", f"{entry['seconds']:.0f}"]
        rows.append(cells)
    align = "lrrrrlrrr"
    if labels is not None:
        header, align = ["", *header], f"l{align}"
        rows = [[labels[entry["arch"]], *cells] for entry, cells in zip(entries, rows, strict=True)]
    return markdown_table(header, rows, align) + "\n"


COLOURS = {"better": "C2", "worse": "C3", "not shown": "grey"}


def plot(
    entries: Sequence[Mapping[str, Any]], path: str | Path, *, title: str, labels: Mapping[str, str] | None = None
) -> None:
    """Draw accuracies and paired differences with their intervals as PNG; small points are seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = [entry["arch"] if labels is None else labels[entry["arch"]] for entry in entries]
    figure = Figure(figsize=(13, 2.2 + 0.45 * len(entries)), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, difference = figure.subplots(1, 2, sharey=True)
    for row, entry in enumerate(entries):
        top1 = list(entry["top1_by_seed"].values())
        accuracy.plot(top1, [row] * len(top1), "o", color="C0", markersize=4, alpha=0.5)
        accuracy.plot(entry["top1"], row, "D", color="C0")
        if "difference" not in entry:
            continue
        colour = COLOURS[verdict(entry)]
        by_seed = list(entry["difference_by_seed"].values())
        difference.plot(by_seed, [row] * len(by_seed), "o", color=colour, markersize=4, alpha=0.4)
        low, high = entry["difference_ci95"] or (entry["difference"],) * 2
        error = [[entry["difference"] - low], [high - entry["difference"]]]
        difference.errorbar(entry["difference"], row, xerr=error, fmt="D", color=colour, capsize=3)
    accuracy.set_yticks(range(len(entries)), names)
    accuracy.invert_yaxis()
    accuracy.set_xlabel("test top-1 (%), seeds and mean")
    difference.axvline(0, color="black", linewidth=0.8)
    difference.set_xlabel(f"paired difference to {names[0]} (points), seeds, mean and 95 % CI")
    # The legend has only the verdicts that occur.
    found = [name for name in COLOURS if any("difference" in entry and verdict(entry) == name for entry in entries)]
    handles = [Line2D([], [], color=COLOURS[name], marker="D", label=name) for name in found]
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    for axes in (accuracy, difference):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
