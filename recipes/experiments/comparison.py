"""Compare networks that one recipe trained on the same seeds: results, paired differences, table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sk.errors import InputError
from edge_sk.files import write_text
from edge_sk.reading import read_json
from edge_sk.rewriting.normalize import Normalize
from edge_sk.training.data import eval_batches
from edge_sk.training.glyphs import SCALES, ScaledGlyphs
from edge_sk.training.recipe import FREE, Recipe, settings
from edge_sk.training.run import (
    CONFIG,
    MANIFEST,
    RECIPE,
    WEIGHTS,
    load_config,
    load_run,
    read_csv,
    saved_manifest,
    saved_recipe,
)
from recipes.experiments.confidence import mean_interval
from recipes.markdown_tables import markdown_table
from recipes.planning import file_name

# Of the larger side of the glyph, as a fraction of the canvas: bins of one ratio.
SCALE_EDGES = np.geomspace(*SCALES, 5)


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
        raise InputError(
            f"{folder} is of another comparison ({'; '.join(differences)}): give another --output, or the --set and "
            "--recipe that it was trained with"
        )
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


def by_scale(folder: Path) -> list[float]:
    """Top-1 of a run on ``scaled_glyphs``, in per cent, in four bins of the scale of the glyph (``SCALE_EDGES``).

    Kept in the run folder, because it takes a while.
    """
    cached = folder / "by_scale.json"
    if cached.is_file() and cached.stat().st_mtime >= (folder / WEIGHTS).stat().st_mtime:
        return read_json(cached)
    run, options = load_run(folder), saved_recipe(folder).data
    normalize = Normalize(run.config.mean, run.config.std)
    batches = eval_batches(run.config.model_dump(), data=run.config.data, options=options)
    with torch.inference_mode():
        right = torch.cat([run.model(normalize(images)).argmax(1) == labels for images, labels in batches])
    drawn = ScaledGlyphs(options.val_split or "test")
    bins = np.digitize([drawn.glyph(index).scale for index in range(len(drawn))], SCALE_EDGES[1:-1])
    top1 = [_digits(100 * float(right.numpy()[bins == place].mean())) for place in range(len(SCALE_EDGES) - 1)]
    write_text(cached, json.dumps(top1))
    return top1


def compare(
    results: Mapping[str, Mapping[int, Finished]], costs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one entry per network, with its differences to the first, over the seeds that both have.

    A seed fixes order and augmentation, so two networks of one seed see the same batches. Their initial weights are
    equal only up to the first layer in which they differ. The interval is Student's at 95 % over seeds: it covers
    training again on the same images, not new test images.

    Args:
        results: Results by network and seed.
        costs: ``params`` and ``macs`` of each network, and further fields of its entry.
    """
    baseline = next(iter(results))
    entries = []
    for arch, runs in results.items():
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
    """Return the difference of ``entry`` to ``other`` in points: mean, 95 % interval, and that of every common seed.

    Without a common seed the mean is ``None``.
    """
    left, right = entry["top1_by_seed"], other["top1_by_seed"]
    differences = {seed: left[seed] - right[seed] for seed in left if seed in right}
    low, high = mean_interval(list(differences.values()))
    return {
        "difference": _digits(statistics.fmean(differences.values())) if differences else None,
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


def points(difference: Mapping[str, Any]) -> str:
    """Return a difference of ``paired`` with its interval, in bold if the interval leaves out zero."""
    if difference["difference"] is None:
        return ""
    gain, interval = f"{difference['difference']:+.2f}", difference["difference_ci95"]
    if interval is None:
        return f"{gain} (one seed)"
    bold = "" if verdict(difference) == "not shown" else "**"
    return f"{bold}{gain}{bold} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the entries of ``compare`` as a table."""
    header = ["network", "seeds", "top-1 %, mean", "std", "to the first, points [95 % CI]", "verdict"]
    rows = []
    for entry in entries:
        seeds = len(entry["top1_by_seed"])
        cells = [f"`{entry['arch']}`", seeds, f"{entry['top1']:.2f}"]
        cells.append("-" if seeds == 1 else f"{entry['top1_deviation']:.2f}")
        cells += [points(entry), verdict(entry)] if "difference" in entry else ["-", "-"]
        rows.append(
            [*cells, f"{entry['params'] / 1e6:.3f} M", f"{entry['macs'] / 1e6:.2f} M", f"{entry['seconds']:.0f}"]
        )
    return markdown_table([*header, "params", "MACs", "training s, median"], rows, "lrrrrlrrr") + "\n"
