"""Merge a network's units for a latency on this host: measure what units cost, merge, measure again, record.

``deploy/export.py --merge`` and ``deploy/merging_study.py`` share it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.errors import InputError, shown
from edge_sk.export import network as networks
from edge_sk.export.executorch import latency
from edge_sk.export.executorch.pte import lower, lower_module
from edge_sk.export.network import Network
from edge_sk.export.prepare import reference
from edge_sk.export.record import Latency, Precision
from edge_sk.files import artifact_path, atomic_write, write_text
from edge_sk.manifest import manifest
from edge_sk.merging import Costs, Goal, Outcome, Report, Step, host_kernel, merged, path
from edge_sk.reading import read_json, validated
from edge_sk.rewriting import reparameterize
from edge_sk.selective_kernel import SelectiveKernel

# Training images that units are measured on: with fewer, one image is worth more than 0.2 points.
IMAGES = 512
# They run as one batch, whose maps must fit into memory: 167 images of 224 pixels.
PIXELS = 2**23
# Of the recipe's: what is merged has been trained already.
FINETUNE_RATE = 0.1
# How often a network that turned out slower than its units' costs said is merged further.
ATTEMPTS = 3


class CostTable(BaseModel, extra="forbid", allow_inf_nan=False):
    """A file of costs, in microseconds: ``costs`` of the record, or measured on a phone. See ``merging.Costs``."""

    plain: float = Field(gt=0)
    units: dict[str, dict[Outcome, float]]
    where: str = ""
    threads: int | None = None
    precision: str | None = None


class Wish(BaseModel, extra="forbid", allow_inf_nan=False):
    """``--merge``: a goal, and how to judge it."""

    budget: float | None = None
    tolerance: float | None = None
    keep: int | None = None
    threads: int = Field(default=1, ge=1, le=256)
    costs: str | None = None
    plain: str | None = None
    finetune: int = Field(default=0, ge=0, le=10_000)

    @property
    def goal(self) -> Goal:
        """Where merging stops."""
        return Goal(keep=self.keep, budget=self.budget, tolerance=self.tolerance)


def parse_wish(words: Sequence[str]) -> Wish:
    """Read ``budget=1.10 threads=2 ...``.

    Raises:
        InputError: A word is not of this form, is unknown, or its value makes no sense; or there is not one goal.
    """
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (_, sign, _) in zip(words, pairs, strict=True) if not sign]:
        known = ", ".join(Wish.model_fields)
        raise InputError(f"--merge {shown(wrong[0])} is not NAME=VALUE, for instance budget=1.10; names: {known}")
    wish = validated(Wish, {name: value for name, _, value in pairs}, "--merge")
    try:
        wish.goal  # noqa: B018 (it checks itself)
    except InputError as error:
        raise InputError(f"--merge: {error}") from None
    return wish


def plain_twin(model: nn.Module) -> nn.Module:
    """The network with every unit replaced by its branch of the host's kernel: as fast as the plain network."""
    return replaced(model, _plain)


def replaced(model: nn.Module, make: Callable[[SelectiveKernel], nn.Module]) -> nn.Module:
    """A copy with every unit replaced."""
    twin = running.copied(model)
    for name, unit in gated_units(twin).items():
        twin.set_submodule(name, make(unit))
    return twin


def _plain(unit: SelectiveKernel) -> nn.Module:
    size = host_kernel(unit)
    branch = next(b for b, kernel in zip(unit.branches, unit.kernels, strict=True) if kernel.extents == size)
    return copy.deepcopy(branch)


def _evenly(unit: SelectiveKernel) -> nn.Module:
    """A merged unit, whatever its weights."""
    return merged(unit, torch.full((len(unit.kernels), unit.out_channels), 1 / len(unit.kernels)))


def measure_costs(
    network: Network, *, precision: Precision, threads: int, work: Path, rounds: int = 3, runs: int = 50
) -> CostTable:
    """Measure on this host what each unit takes beyond its plain convolution.

    How the cost is shared among units comes from traces of the operators of units exported by themselves. How much it
    is together comes from whole files that take turns: of the plain network, of this one, and of this one merged.
    """
    whole = {"plain": plain_twin(network.model), "sk": network.model, "all merged": replaced(network.model, _evenly)}
    latencies = measure_together(
        network, whole, precision=precision, threads=threads, work=work, rounds=rounds, runs=runs
    )
    alone = _units_alone(network, precision=precision, threads=threads, work=work)
    units: dict[str, dict[Outcome, float]] = {name: {} for name in alone}
    plain = 1e3 * latencies["plain"].p50_ms
    outcomes: tuple[tuple[Outcome, str], ...] = (("select", "sk"), ("merge", "all merged"))
    for outcome, file in outcomes:
        traced = {name: max(times[outcome] - times["plain"], 0.0) for name, times in alone.items()}
        together = max(1e3 * latencies[file].p50_ms - plain, 0.0)
        for name, micros in traced.items():
            # What the trace cannot tell apart is shared alike.
            share = micros / sum(traced.values()) if sum(traced.values()) else 1 / len(traced)
            units[name][outcome] = round(together * share, 3)
    for name, unit in gated_units(network.model).items():
        convolution = _evenly(unit)
        if isinstance(convolution, nn.Conv2d):
            if convolution.kernel_size != host_kernel(unit):
                units[name]["cut"] = 0.0
            else:
                units[name]["merge"] = 0.0  # the plain convolution
    where = latencies["plain"].where
    return CostTable(plain=round(plain, 3), units=units, where=where, threads=threads, precision=precision)


def measure_together(
    network: Network,
    models: dict[str, nn.Module],
    *,
    precision: Precision,
    threads: int,
    work: Path,
    rounds: int = 3,
    runs: int = 50,
) -> dict[str, Latency]:
    """Host latency of models exported as ``network`` is, the files taking turns."""
    files = {}
    for name, model in models.items():
        files[name] = artifact_path(work, f"{network.stem}-{name.replace(' ', '-')}-{precision}", ".pte")
        if not files[name].exists():
            program = lower(dataclasses.replace(network, model=model), precision=precision).program
            with atomic_write(files[name]) as temporary:
                temporary.write_bytes(bytes(program.buffer))
    measured = latency.measure(list(files.values()), threads=threads, rounds=rounds, runs=runs)
    return dict(zip(files, measured, strict=True))


def _units_alone(network: Network, *, precision: Precision, threads: int, work: Path) -> dict[str, dict[str, float]]:
    """Microseconds of the operators of every unit by itself: selecting, merged, and as its plain convolution."""
    shapes: dict[str, tuple[int, ...]] = {}
    units = gated_units(network.model)
    hooks = [
        unit.register_forward_pre_hook(functools.partial(_note_shape, shapes, name)) for name, unit in units.items()
    ]
    with running.evaluating(network.model):
        reference(network)(network.example())
    for hook in hooks:
        hook.remove()
    # Units of one kind cost the same.
    known: dict[tuple[str, tuple[int, ...]], dict[str, float]] = {}
    found = {}
    for name, unit in units.items():
        if name not in shapes:
            raise InputError(f"{network.arch}: the unit {name} does not run")
        kind = (repr(unit), shapes[name])
        if kind not in known:
            forms = {"select": unit, "merge": _evenly(unit), "plain": _plain(unit)}
            files = {form: work / f"unit{len(known)}-{form}-{precision}.pte" for form in forms}
            times = {}
            for form, module in forms.items():
                image = torch.rand(shapes[name], generator=torch.Generator().manual_seed(0))
                if not files[form].exists():
                    rewritten = reparameterize(module, image)
                    program, _ = lower_module(rewritten, image, lambda x=image: [x], name=name, precision=precision)
                    with atomic_write(files[form]) as temporary:
                        temporary.write_bytes(bytes(program.buffer))
                times[form] = sum(1e3 * one.p50_ms for one in latency.operator_times(files[form], threads=threads))
            known[kind] = times
        found[name] = known[kind]
    return found


def _note_shape(shapes: dict[str, tuple[int, ...]], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    shapes[name] = tuple(args[0].shape)


class Point(NamedTuple):
    """A network on the way from all units selecting to none."""

    model: nn.Module
    step: Step
    test_top1: float | None


def walk(network: Network, *, costs: Costs | None) -> tuple[list[Point], Report]:
    """Merge unit after unit on training images, to the end, and test every network on the way."""
    _, height, width = network.input_size
    batch, labels = training_images(network, max(1, min(IMAGES, PIXELS // (height * width))))
    points, reports = list[Point](), list[Report]()
    for model, report in path(network.model, batch, labels=labels if network.knows_data else None, costs=costs):
        points.append(Point(running.copied(model), report.steps[-1], test_top1(network, model)))
        reports.append(report)
    return points, reports[-1]


def training_images(network: Network, count: int) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, spread over the training set, and their labels; never of the test set."""
    batches = list(network.images(split="train", limit=count))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (network.mean, network.std))
    return (images - mean) / std, labels


def test_top1(network: Network, model: nn.Module) -> float | None:
    """Accuracy of a model in per cent on the network's test images, where it means something."""
    if not network.knows_data:
        return None
    fed = reference(dataclasses.replace(network, model=model))
    right, count = 0, 0
    with running.evaluating(fed):
        for images, labels in network.test_images(None):
            right += int((fed(images).argmax(1) == labels).sum())
            count += len(labels)
    return 100 * right / count


def choose(points: Sequence[Point], goal: Goal) -> int:
    """The first network that reaches the goal, or the last one that it allows."""
    for index, point in enumerate(points):
        if not goal.allows(point.step):
            return index - 1
        if goal.reached(point.step):
            return index
    return len(points) - 1


def finetune(network: Network, checkpoint: str, epochs: int, *, work: Path) -> Network:
    """Train a merged network on by the recipe of its run, at a tenth of the learning rate and without warm-up."""
    from edge_sk.training import run as run_folder
    from edge_sk.training.distributed import join_world
    from edge_sk.training.plan import Plan, start

    config, trained = run_folder.load_config(checkpoint), run_folder.saved_recipe(checkpoint)
    settings = [
        f"schedule.epochs={epochs}",
        "schedule.warmup_epochs=0",
        f"optim.lr={FINETUNE_RATE * trained.optim.lr}",
        "checkpoint.init_from=null",
    ]
    recipe = run_folder.saved_recipe(checkpoint, settings)
    seed = run_folder.saved_manifest(checkpoint)["seed"]
    plan = Plan(config.arch, recipe, config.recipe, network.data_set(), seed, work / "finetune", resume=False)
    with join_world() as world:
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
    say: Callable[[str], None],
) -> Network:
    """The merged network, ready to be exported; its record, costs and curve are written into ``output``.

    Files: ``NAME.merge.json``, ``NAME.costs.json`` (what ``costs=`` reads), ``NAME.merge.png``.

    Raises:
        InputError: No unit selects, the goal cannot be reached, or something does not fit.
    """
    units = gated_units(network.model)
    given = None if wish.costs is None else validated(CostTable, read_json(wish.costs), wish.costs)
    plain = None if wish.plain is None else networks.from_run(wish.plain, data=network.data)
    if wish.finetune and checkpoint is None:
        raise InputError("--merge finetune= trains on by a run's recipe: give --checkpoint")
    if wish.tolerance is not None and not network.knows_data:
        raise InputError("--merge tolerance= is a loss of accuracy: give a trained run (--checkpoint) and its own data")
    work = Path(tempfile.mkdtemp(prefix="edge_sk_merge_"))
    try:
        if given is None:
            say(f"measuring what {len(units)} units cost, {precision}, threads={wish.threads}")
        table = given or measure_costs(network, precision=precision, threads=wish.threads, work=work)
        costs = Costs(plain=table.plain, units=table.units)
        wish.goal.check(units, labels=torch.empty(0), costs=costs)
        say("merging, one unit after another")
        points, report = walk(network, costs=costs)
        index, together = _fit(network, points, wish, precision=precision, work=work, say=say)
        chosen = dataclasses.replace(network, model=points[index].model)
        after = points[index].test_top1
        if wish.finetune and checkpoint is not None:
            say(f"training on for {wish.finetune} epochs")
            chosen = finetune(chosen, checkpoint, wish.finetune, work=work)
            after = test_top1(network, chosen.model)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    name = " ".join(
        f"{key}={value}" for key, value in wish.model_dump(exclude={"costs", "plain"}, exclude_defaults=True).items()
    )
    chosen = dataclasses.replace(chosen, arch=f"{network.arch} merged {name}")
    record = {
        "arch": network.arch,
        "weights": network.weights,
        "goal": wish.model_dump(exclude_defaults=True),
        "precision": precision,
        "chosen": index,
        "accuracy": {
            "plain": plain and test_top1(plain, plain.model),
            "sk": points[0].test_top1,
            "merged": after,
            "data": f"{network.data_set()} test" if network.knows_data else None,
        },
        "ratios": {
            str(count): {_role(file): value for file, value in ratios(one).items()} for count, one in together.items()
        },
        "latency": {
            str(count): {_role(file): measured.model_dump() for file, measured in one.items()}
            for count, one in together.items()
        },
        "path": [described(point) for point in points],
        "units": [dataclasses.asdict(unit) for unit in report.units],
        "images": f"{report.images} training images",
        "costs": table.model_dump(),
        "manifest": manifest(argv),
    }
    write_text(artifact_path(output, chosen.stem, ".merge.json"), json.dumps(record, indent=1) + "\n")
    write_text(artifact_path(output, chosen.stem, ".costs.json"), table.model_dump_json(indent=1) + "\n")
    plot({network.arch: record["path"]}, artifact_path(output, chosen.stem, ".merge.png"), chosen=index)
    say(summary(record))
    return chosen


def _fit(
    network: Network,
    points: Sequence[Point],
    wish: Wish,
    *,
    precision: Precision,
    work: Path,
    say: Callable[[str], None],
) -> tuple[int, dict[int, dict[str, Latency]]]:
    """Which network to take, and its latency beside the plain and the selecting one's, by number of threads.

    One that is slower than its units' costs said is merged further; costs of elsewhere cannot be checked here.
    """
    twin, goal, ratio = plain_twin(network.model), wish.goal, math.inf
    for _ in range(ATTEMPTS):
        index = choose(points, goal)
        models = {"plain": twin, "sk": network.model, f"step {index}": points[index].model}
        together = {
            threads: measure_together(network, models, precision=precision, threads=threads, work=work)
            for threads in sorted({1, 2, wish.threads})
        }
        ratio = ratios(together[wish.threads])[f"step {index}"]
        if wish.budget is None or wish.costs is not None or ratio <= wish.budget:
            return index, together
        expected = points[index].step.ratio or ratio
        if index + 1 == len(points):
            break
        say(f"measured {ratio:.3f} of the plain network's latency, budget {wish.budget:g}: merging further")
        goal = Goal(budget=min(wish.budget - (ratio - expected), expected - 1e-9))
    raise InputError(
        f"--merge budget={wish.budget:g} cannot be met on this host: the smallest ratio measured is {ratio:.3f}; "
        "measure on a quiet machine, or give that"
    )


def ratios(latencies: dict[str, Latency]) -> dict[str, float]:
    """Latency as a share of the plain network's: median over rounds, in which the files took turns, of the ratio."""
    plain = latencies["plain"].round_p50_ms
    return {
        name: round(statistics.median(a / b for a, b in zip(one.round_p50_ms, plain, strict=True)), 4)
        for name, one in latencies.items()
    }


def _role(file: str) -> str:
    return "merged" if file.startswith("step") else file


def described(point: Point) -> dict[str, Any]:
    """A point of the curve as plain values."""
    step = point.step
    return {
        "moved": step.moved and f"{step.moved} {step.outcomes[step.moved]}",
        "select": step.count("select"),
        "merge": step.count("merge"),
        "cut": step.count("cut"),
        "ratio_by_costs": None if step.ratio is None else round(step.ratio, 4),
        "change": round(step.effect.change, 5),
        "train_gain": step.effect.gain,
        "test_top1": point.test_top1,
    }


def summary(record: dict[str, Any]) -> str:
    """A few lines for people."""
    point = record["path"][record["chosen"]]
    lines = [
        f"{record['arch']}: {point['select']} units select, {point['merge']} merged, {point['cut']} cut to the host's "
        "kernel; undone only from the checkpoint"
    ]
    for threads, found in record["ratios"].items():
        lines.append(
            f"  latency of the plain network's, {threads} thread{'s' * (threads != '1')}: "
            f"SK {found['sk']:.3f}, merged {found['merged']:.3f}"
        )
    top1 = {name: record["accuracy"][name] for name in ("plain", "sk", "merged")}
    if top1["sk"] is not None:
        lines.append("  test top-1: " + ", ".join(f"{name} {v:.2f} %" for name, v in top1.items() if v is not None))
    return "\n".join(lines)


def plot(curves: Mapping[str, Sequence[dict[str, Any]]], target: Path, *, chosen: int | None = None) -> None:
    """Draw test accuracy against latency over the number of units that still select; of untested ones the change."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tested = all(point["test_top1"] is not None for points in curves.values() for point in points)
    for name, points in curves.items():
        x = [point["ratio_by_costs"] for point in points]
        y = [point["test_top1"] if tested else 100 * point["change"] for point in points]
        (line,) = axes.plot(x, y, marker="o", markersize=3, label=name)
        counts = [point["select"] for point in points]
        for index in range(len(points)):
            if index == 0 or counts[index] != counts[index - 1]:
                place = {"textcoords": "offset points", "xytext": (0, 5), "fontsize": 7, "ha": "center"}
                axes.annotate(str(counts[index]), (x[index], y[index]), **place)
        if chosen is not None:
            axes.plot(x[chosen], y[chosen], marker="o", markersize=10, fillstyle="none", color=line.get_color())
    label = "test top-1 (%)" if tested else "change of the output (%)"
    axes.set(xlabel="latency, of the plain network's, by the units' costs", ylabel=label)
    axes.set_title("Numbers: units that still select", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
