"""Starting and resuming runs: from what the user asked for to a ``Trainer`` and its folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edge_sk.errors import InputError
from edge_sk.files import check_output, write_text
from edge_sk.manifest import __version__, manifest
from edge_sk.models import create_model, default_recipe
from edge_sk.models._weights import image_fields
from edge_sk.training import checkpoint, snapshot
from edge_sk.training.distributed import World
from edge_sk.training.engine import Trainer
from edge_sk.training.feed import Format, describe, open_feed
from edge_sk.training.metrics import read_csv
from edge_sk.training.randomness import seed_everything
from edge_sk.training.recipe import (
    DataRecipe,
    Recipe,
    differing_keys,
    load_recipe,
    make_recipe,
    parse_yaml,
    recipe_to_yaml,
)
from edge_sk.training.sampler import part_size
from edge_sk.training.sources import is_embedded

RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"

# Recipe keys that a resumed run may change: they alter where, how fast and how safely it computes, not what.
# Accumulation is free because fewer processes with more parts are the same run; _identity says what must stay.
FREE_KEYS = {
    "data.accumulation",
    "data.eval_batch_size",
    "data.max_unreadable",
    "data.root",
    "data.download",
    "runtime.compile",
    "checkpoint.every_minutes",
    "log.tensorboard",
    "log.wandb",
}


@dataclass(frozen=True)
class Plan:
    """A run as asked for, defaults filled in."""

    arch: str
    recipe: Recipe
    recipe_name: str
    data: str
    seed: int
    folder: Path
    resume: bool

    @property
    def title(self) -> str:
        """Name of the run in pictures and logs."""
        return f"{self.arch} {self.recipe_name} seed {self.seed}"


def make_plan(
    arch: str,
    *,
    recipe: str | None = None,
    data: str | None = None,
    output: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    recipes: Path,
) -> Plan:
    """Fill in what was not given: from the run folder when resuming, else from the architecture.

    Args:
        arch: A name that ``edge_sk.create_model`` takes.
        recipe: Name or path; ``None``: an embedded data set's own, else the architecture's family's.
        data: ``--data``; ``None``: the digits.
        output: Run folder; ``None``: ``runs/`` and ``run_name``.
        overrides: ``section.key=value``.
        seed: ``None``: 0.
        resume: Continue the run in the folder.
        recipes: Folder of the named recipes.

    Raises:
        InputError: The recipe is unknown or wrong, or there is nothing to resume.
    """
    wanted = data or "digits"
    name = recipe or recipe_name(arch, wanted)
    if output is None:
        output = os.path.join("runs", run_name(arch, name, wanted, seed or 0))
    folder = Path(output)
    elastic_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and not folder.is_dir():
        raise InputError(
            f"nothing to resume: {folder} does not exist; name the run's folder with --output, "
            "or start without --resume"
        )
    resume = resume or elastic_restart
    if resume and recipe is None and (folder / RECIPE).is_file():
        chosen = saved_recipe(folder, overrides)
        config = checkpoint.load_config(folder)
        name, data = config.recipe, data or config.data
        seed = saved_manifest(folder)["seed"] if seed is None else seed
    else:
        chosen = load_recipe(name, overrides, folder=recipes)
    return Plan(arch, chosen, name, data or "digits", seed or 0, folder, resume)


def run_name(arch: str, recipe: str, data: str, seed: int) -> str:
    """``ARCH-RECIPE-DATA-seedN``: CIFAR-10 and CIFAR-100 under one recipe are two runs.

    DATA is the last part of ``data``, left out where the recipe has its name.
    """
    stem = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
    parts = [file_name(arch), stem, file_name(os.path.basename(os.path.abspath(data))), f"seed{seed}"]
    return "-".join(parts if data != stem else parts[:2] + parts[3:])


def file_name(text: str) -> str:
    """A name as part of a folder's."""
    return re.sub(r"[^A-Za-z0-9._+=,@-]", "-", text)


def saved_recipe(folder: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a run folder, with ``overrides``.

    Raises:
        InputError: It is not there or damaged, or an override is wrong.
    """
    path = Path(folder) / RECIPE
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run folder: it has no {RECIPE}") from None
    return make_recipe(values or {}, overrides, origin=str(path))


def saved_manifest(folder: str | Path) -> dict[str, Any]:
    """What a run folder says of its making: ``seed``, ``commit``, and under ``resumed`` the same for each continuation.

    Raises:
        InputError: It is not there or damaged.
    """
    path = Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run folder: it has no {MANIFEST}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("seed"), int):
        raise InputError(f"{path} is damaged: it names no seed")
    return values


def trained_at(folder: str | Path) -> set[str]:
    """The commits of the code that trained a run: more than one where it was continued by another version."""
    first = saved_manifest(folder)
    return {str(part.get("commit")) for part in (first, *first.get("resumed", []))}


def unfinished(folder: str | Path) -> str | None:
    """How far an unfinished run was trained, as ``3 of 100 epochs``; ``None`` for a finished one.

    ``metrics.csv`` tells: the last epoch's row is written after the weights. Those of a killed run can be older than
    the epochs say.

    Raises:
        InputError: The recipe is not there, or it or ``metrics.csv`` is damaged.
    """
    planned = saved_recipe(folder).schedule.epochs
    rows = read_csv(folder)
    done = int(rows[-1]["epoch"]) if rows else 0
    return None if done >= planned else f"{done} of {planned} epochs"


def recipe_name(arch: str, data: str) -> str:
    """The recipe that is meant when none is named: an embedded data set's own, else the architecture's family's."""
    return data.partition("@")[0] if is_embedded(data) else default_recipe(arch)


def recipe_differences(a: Recipe, b: Recipe) -> list[str]:
    """``key: a -> b`` for what differs in what two runs compute, not in how they compute it."""
    return [text for text in differing_keys(a, b) if text.split(":")[0] not in FREE_KEYS]


def data_options(folder: str | Path, data: str) -> DataRecipe:
    """How the run in ``folder`` read ``data``: its recipe's ``data`` section; embedded data sets need none.

    Raises:
        InputError: The recipe is not there or damaged.
    """
    return DataRecipe() if is_embedded(data) else saved_recipe(folder).data


def build_model(plan: Plan, num_classes: int) -> tuple[nn.Module, dict[str, Any], Format]:
    """The network with the plan's seed, its ``default_cfg``, and how images are given to it.

    Weights to start from bring the mean, the standard deviation and, unless the recipe sets them, the crop and the
    interpolation that they were trained with. A run that goes on from a checkpoint keeps those of its ``config.json``.

    Raises:
        InputError: Unknown architecture or option, or ``config.json`` is missing or damaged where it is needed.
    """
    seed_everything(plan.seed, "weights")
    # A run that was stopped before its first checkpoint starts again from the given weights.
    resumed = plan.resume and any((plan.folder / name).exists() for name in (snapshot.CURRENT, snapshot.PREVIOUS))
    init_from = None if resumed else plan.recipe.checkpoint.init_from
    model = create_model(plan.arch, num_classes=num_classes, init_from=init_from)
    cfg: dict[str, Any] = dict(model.default_cfg)  # type: ignore[arg-type]
    if resumed and plan.recipe.checkpoint.init_from is not None:
        cfg |= image_fields(checkpoint.load_config(plan.folder).model_dump())
    data = plan.recipe.data
    channels, height, width = cfg["input_size"]
    if data.input_size is not None:
        height = width = data.input_size
    form = Format(
        input_size=(channels, height, width),
        crop_pct=data.crop_pct or cfg["crop_pct"],
        interpolation=data.interpolation or cfg["interpolation"],
    )
    return model, cfg, form


def dry_run(plan: Plan) -> str:
    """What the run would be: recipe, parameters, MACs, steps."""
    from edge_sk.profiling import profile

    images, num_classes = describe(plan.data, plan.recipe.data)
    model, _, form = build_model(plan, num_classes)
    cost = profile(model, input_size=(1, *form.input_size))
    batch = plan.recipe.data.batch_size
    if batch > images:
        raise InputError(f"data.batch_size={batch} is larger than the training set of {images} images")
    steps, epochs = images // batch, plan.recipe.schedule.epochs
    return (
        f"{recipe_to_yaml(plan.recipe)}\n"
        f"arch        {plan.arch}\n"
        f"data        {plan.data}: {images:,} training images, {num_classes:,} classes\n"
        f"input       {' x '.join(map(str, form.input_size))}\n"
        f"parameters  {cost.params:,}\n"
        f"MACs        {cost.macs:,}\n"
        f"steps       {steps * epochs:,} ({epochs} epochs of {steps:,} steps of {batch} images)\n"
        f"run folder  {plan.folder}"
    )


def start(plan: Plan, world: World, *, workers: int | None = None, argv: Sequence[str] | None = None) -> Trainer:
    """Open the data, build the network, make or check the run folder, and resume if asked to.

    Raises:
        InputError: Bad data, architecture or folder, or a checkpoint that is not this run's.
    """
    if world.is_main:
        _claim_folder(plan)
    _, num_classes = describe(plan.data, plan.recipe.data)
    model, cfg, form = build_model(plan, num_classes)
    feed = open_feed(
        plan.data,
        plan.recipe,
        form,
        seed=plan.seed,
        workers=workers,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )
    config = checkpoint.RunConfig(
        arch=plan.arch,
        num_classes=num_classes,
        classes=feed.classes,
        in_chans=form.input_size[0],
        input_size=form.input_size,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=form.interpolation,
        crop_pct=form.crop_pct,
        recipe=plan.recipe_name,
        data=plan.data,
        edge_sk_version=__version__,
    )
    trainer = Trainer(
        model,
        plan.recipe,
        feed,
        folder=plan.folder,
        world=world,
        mean=config.mean,
        std=config.std,
        identity=_identity(plan, world, train_images=feed.train_images, num_classes=num_classes),
        title=plan.title,
    )
    if plan.resume:
        warning = trainer.resume()
        if warning and world.is_main:
            print(f"warning: {warning}; continuing from the one before it")
    if world.is_main:
        _describe_run(plan, config, argv)
    return trainer


def _identity(plan: Plan, world: World, *, train_images: int, num_classes: int) -> dict[str, Any]:
    # Not the data set's path: data may be moved between the parts of a run.
    recipe = {
        f"{section}.{key}": value
        for section, fields in plan.recipe.model_dump(mode="json").items()
        for key, value in fields.items()
        if f"{section}.{key}" not in FREE_KEYS
    }
    data = plan.recipe.data
    normalized = part_size(data.batch_size, world_size=world.size, accumulation=data.accumulation)
    if plan.recipe.runtime.sync_bn:
        normalized *= world.size
    return {
        "arch": plan.arch,
        "seed": plan.seed,
        "train images": train_images,
        "classes": num_classes,
        "images per batch norm (batch_size / processes / accumulation)": normalized,
        **recipe,
    }


def _claim_folder(plan: Plan) -> None:
    folder = plan.folder
    if plan.resume:
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        remedy = "--resume continues it" if (folder / snapshot.CURRENT).exists() else "it is not empty"
        raise InputError(f"{folder} exists already: {remedy}, another --output starts a new run")


def _describe_run(plan: Plan, config: checkpoint.RunConfig, argv: Sequence[str] | None) -> None:
    check_output(plan.folder)
    record = manifest(argv, seed=plan.seed)
    path = plan.folder / MANIFEST
    if plan.resume and path.is_file():
        first = json.loads(path.read_text(encoding="utf-8"))
        record = first | {"resumed": [*first.get("resumed", []), record]}
    write_text(path, json.dumps(record, indent=2) + "\n")
    checkpoint.save_config(plan.folder, config)
    # Last: where it is, the folder can be resumed.
    write_text(plan.folder / RECIPE, f"# The resolved recipe of {plan.title}\n" + recipe_to_yaml(plan.recipe))
