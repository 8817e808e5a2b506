"""Merge a network's units for a latency on this host: measure what they cost, merge, measure again, record.

``edge-sk export --merge`` and ``deploy/merging_study.py`` share it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from deploy.costs import measure_costs, measure_together, plain, ratios, replaced, write_files
from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.costs import Costs, read_costs
from edge_sk.errors import InputError, shown
from edge_sk.export import network as networks
from edge_sk.export.network import Network
from edge_sk.export.prepare import reference
from edge_sk.export.record import Latency, Precision
from edge_sk.files import artifact_path, atomic_write, write_text
from edge_sk.manifest import manifest
from edge_sk.merging import Report, Step, path
from edge_sk.merging.goal import Goal
from edge_sk.reading import validated
from edge_sk.rewriting.normalize import Normalize

# Training images that units are measured on: with fewer, one image is worth more than 0.2 points.
IMAGES = 512
# They run as one batch, whose maps must fit into memory: 167 images of 224 pixels.
PIXELS = 2**23
# Of the recipe's: what is merged has been trained already.
FINETUNE_RATE = 0.1
# How often a network that turned out slower than its units' costs said is merged further.
ATTEMPTS = 8


class Wish(Goal):
    """``--merge``: a goal, and how to judge it."""

    threads: int = Field(default=1, ge=1, le=256)
    costs: str | None = None
    plain: str | None = None
    finetune: int = Field(default=0, ge=0, le=10_000)


def parse_wish(words: Sequence[str]) -> Wish:
    """Read ``budget=1.10 threads=2 ...``.

    Raises:
        InputError: A word is not of this form, is unknown, or its value makes no sense; or there is not one goal.
    """
    if wrong := [word for word in words if "=" not in word or word.split("=")[0] not in Wish.model_fields]:
        known = ", ".join(Wish.model_fields)
        raise InputError(f"--merge {shown(wrong[0])} is not NAME=VALUE, for instance budget=1.10; names: {known}")
    return validated(Wish, dict(word.split("=", 1) for word in words), "--merge")


class Point(NamedTuple):
    """A network on the way from all units selecting to none."""

    model: nn.Module
    step: Step
    test_top1: float | None

    def described(self) -> dict[str, Any]:
        """The point as plain values."""
        step, moved = self.step, self.step.moved
        return {
            "moved": moved and f"{moved} {step.outcomes[moved]}",
            **{outcome: step.count(outcome) for outcome in ("select", "merge", "cut")},
            "ratio_by_costs": step.ratio and round(step.ratio, 4),
            "change": round(step.effect.change, 5),
            "train_gain": step.effect.gain,
            "test_top1": self.test_top1,
        }


def walk(network: Network, *, costs: Costs | None) -> tuple[list[Point], Report]:
    """Merge unit after unit on training images, to the end, and test every network on the way."""
    _, height, width = network.input_size
    images, labels = training_images(network, max(1, min(IMAGES, PIXELS // (height * width))))
    points, report = list[Point](), None
    for model, report in path(network.model, images, labels=labels if network.knows_data else None, costs=costs):
        step = report.steps[-1]
        points.append(Point(running.copied(model), step, test_top1(network, model)))
        print(
            f"  {step.count('select')} of {len(step.outcomes)} units select, output changed by {step.effect.change:.2%}"
        )
    assert report is not None
    return points, report


def training_images(network: Network, count: int) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, spread over the training set, and their labels; never of the test set."""
    images, labels = (torch.cat(parts) for parts in zip(*network.images(split="train", limit=count), strict=True))
    return Normalize(network.mean, network.std)(images), labels


def test_top1(network: Network, model: nn.Module) -> float | None:
    """Accuracy of a model in per cent on the network's test images, where it means something."""
    if not network.knows_data:
        return None
    fed = reference(dataclasses.replace(network, model=model))
    with running.evaluating(fed):
        right = [fed(images).argmax(1) == labels for images, labels in network.test_images(None)]
    return 100 * float(torch.cat(right).double().mean())


def finetune(network: Network, checkpoint: str | Path, epochs: int) -> Network:
    """Train a merged network on by the recipe of its run, at a tenth of the learning rate and without warm-up."""
    from edge_sk.training import run as run_folder
    from edge_sk.training.distributed import join_world
    from edge_sk.training.plan import Plan, start

    config, rate = run_folder.load_config(checkpoint), run_folder.saved_recipe(checkpoint).optim.lr
    settings = ["schedule.warmup_epochs=0", f"optim.lr={FINETUNE_RATE * rate}", "checkpoint.init_from=null"]
    recipe = run_folder.saved_recipe(checkpoint, [f"schedule.epochs={epochs}", *settings])
    seed = run_folder.saved_manifest(checkpoint)["seed"]
    with tempfile.TemporaryDirectory(prefix="edge_sk_merge_") as folder, join_world() as world:
        plan = Plan(config.arch, recipe, config.recipe, network.data_set(), seed, Path(folder), resume=False)
        trainer = start(plan, world, model=running.copied(network.model).train())
        if trainer.run() is not None:
            raise KeyboardInterrupt  # the run took the signal
    return dataclasses.replace(network, model=trainer.evaluated_model.cpu().eval())


def merge_network(
    network: Network,
    wish: Wish,
    *,
    precision: Precision,
    checkpoint: str | None,
    output: Path,
    argv: Sequence[str] | None,
) -> Network:
    """The merged network, ready to be exported; its record, costs and curve are written into ``output``.

    Files: ``NAME.merge.json``, ``NAME.costs.json`` (what ``costs=`` reads), ``NAME.merge.png``.

    Raises:
        InputError: No unit selects, the goal cannot be reached, or something does not fit.
    """
    units = gated_units(network.model)
    given = None if wish.costs is None else read_costs(wish.costs, units, "select", "merge")
    control = None if wish.plain is None else networks.from_run(wish.plain, data=network.data)
    if wish.finetune and checkpoint is None:
        raise InputError("--merge finetune= trains on by a run's recipe: give --checkpoint")
    if wish.tolerance is not None and not network.knows_data:
        raise InputError("--merge tolerance= is a loss of accuracy: give a trained run (--checkpoint) and its own data")
    with tempfile.TemporaryDirectory(prefix="edge_sk_merge_") as folder:
        work = Path(folder)
        if given is None:
            print(f"measuring what {len(units)} units cost, {precision}, threads={wish.threads}: some minutes")
        costs = given or measure_costs(network, precision=precision, threads=wish.threads, work=work)
        wish.check(units, costs)
        print("merging, one unit after another")
        points, report = walk(network, costs=costs)
        index, together = _fit(network, points, wish, precision, work)
        chosen, after = dataclasses.replace(network, model=points[index].model), points[index].test_top1
        if wish.finetune and checkpoint is not None:
            print(f"training on for {wish.finetune} epochs")
            chosen = finetune(chosen, checkpoint, wish.finetune)
            after = test_top1(network, chosen.model)
    named = wish.model_dump(exclude={"costs", "plain"}, exclude_defaults=True)
    name = " ".join(f"{key}={value}" for key, value in named.items())
    chosen = dataclasses.replace(chosen, arch=f"{network.arch} merged {name}")
    top1 = {"plain": control and test_top1(control, control.model), "sk": points[0].test_top1, "merged": after}
    record: dict[str, Any] = {
        "arch": network.arch,
        "weights": network.weights,
        "goal": wish.model_dump(exclude_defaults=True),
        "precision": precision,
        "chosen": index,
        "accuracy": top1 | {"data": f"{network.data_set()} test" if network.knows_data else None},
        "ratios": {str(count): ratios(latencies) for count, latencies in together.items()},
        "latency": {
            str(count): {name: measured.model_dump() for name, measured in latencies.items()}
            for count, latencies in together.items()
        },
        "path": [point.described() for point in points],
        "units": [dataclasses.asdict(unit) for unit in report.units],
        "images": f"{report.images} training images",
        "costs": costs.model_dump(),
        "manifest": manifest(argv),
    }
    write_text(artifact_path(output, chosen.stem, ".merge.json"), json.dumps(record, indent=1) + "\n")
    write_text(artifact_path(output, chosen.stem, ".costs.json"), costs.model_dump_json(indent=1) + "\n")
    plot({network.arch: record["path"]}, artifact_path(output, chosen.stem, ".merge.png"), chosen=index)
    print(f"{points[index].step}; undone only from the checkpoint")
    for threads, found in record["ratios"].items():
        print("  latency of the plain network's, threads={}: SK {sk:.3f}, merged {merged:.3f}".format(threads, **found))
    if after is not None:
        print("  test top-1: " + ", ".join(f"{name} {top1[name]:.2f} %" for name in top1 if top1[name] is not None))
    return chosen


def _fit(
    network: Network, points: Sequence[Point], wish: Wish, precision: Precision, work: Path
) -> tuple[int, dict[int, dict[str, Latency]]]:
    """Which network to take, and its latency beside the plain and the selecting one's, by number of threads.

    One that is slower than its units' costs said is merged further; costs of elsewhere cannot be checked here.
    """
    steps, twin = [point.step for point in points], replaced(network.model, plain)
    goal: Goal = wish
    ratio = math.inf
    for _ in range(ATTEMPTS):
        index = goal.chosen(steps)
        index = len(steps) - 1 if index is None else index
        models = {"plain": twin, "select": network.model, f"step{index}": points[index].model}
        files = write_files(network, models, precision=precision, work=work)
        together = {}
        for threads in sorted({1, 2, wish.threads}):
            found = measure_together(files, threads=threads).values()
            together[threads] = dict(zip(("plain", "sk", "merged"), found, strict=True))
        ratio, expected = ratios(together[wish.threads])["merged"], steps[index].ratio or math.inf
        if wish.budget is None or wish.costs is not None or ratio <= wish.budget:
            return index, together
        if index + 1 == len(steps):
            break
        print(
            f"with {steps[index].count('select')} of {len(steps[0].outcomes)} units selecting, measured {ratio:.3f} of "
            f"the plain network's latency, budget {wish.budget:g}: merging further"
        )
        goal = Goal.model_construct(budget=min(wish.budget - (ratio - expected), expected - 1e-9))
    raise InputError(
        f"--merge budget={wish.budget:g} cannot be met on this host: the last ratio measured is {ratio:.3f}; "
        "measure on a quiet machine, or give that"
    )


def plot(curves: Mapping[str, Sequence[dict[str, Any]]], target: Path, *, chosen: int | None = None) -> None:
    """Draw test accuracy against latency over the number of units that still select; of untested ones the change."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    tested = all(point["test_top1"] is not None for points in curves.values() for point in points)
    for name, points in curves.items():
        x = [point["ratio_by_costs"] for point in points]
        y = [point["test_top1"] if tested else 100 * point["change"] for point in points]
        (line,) = axes.plot(x, y, marker="o", markersize=3, label=name)
        counts = [point["select"] for point in points]
        for index, count in enumerate(counts):
            if count not in counts[:index]:
                place = {"textcoords": "offset points", "xytext": (0, 5), "fontsize": 7, "ha": "center"}
                axes.annotate(str(count), (x[index], y[index]), **place)
        if chosen is not None:
            axes.plot(x[chosen], y[chosen], marker="o", markersize=10, fillstyle="none", color=line.get_color())
    label = "test top-1 (%)" if tested else "change of the output (%)"
    axes.set(xlabel="latency, of the plain network's, by the units' costs", ylabel=label)
    axes.set_title("Numbers: units that still select", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
