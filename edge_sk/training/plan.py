"""From what the user asked for to a ``Trainer`` that can run: a new run, or one that goes on."""

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
from edge_sk.training.batches import part_size, steps_per_epoch
from edge_sk.training.data import count_classes, make_shard, open_split, ordered_batches, training_batches
from edge_sk.training.distributed import World
from edge_sk.training.loop import Feed, Trainer
from edge_sk.training.randomness import seed_everything
from edge_sk.training.recipe import FREE, Recipe, load_recipe, recipe_to_yaml, settings
from edge_sk.training.run import (
    CHECKPOINT,
    MANIFEST,
    RECIPE,
    RunConfig,
    can_resume,
    load_config,
    save_config,
    saved_manifest,
    saved_recipe,
)
from edge_sk.training.sources import is_embedded
from edge_sk.training.transforms import Preprocessing, evaluation_transform, training_transform


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
    """Fill in what was not given on the command line: from the run folder when resuming, else defaults.

    The defaults: the digits, :func:`recipe_name`, ``runs/`` and :func:`run_name`, seed 0. ``recipes`` is the folder of
    the named recipes. An ``InputError`` says that the recipe is wrong, or that there is nothing to resume.
    """
    wanted = data or "digits"
    name = recipe or recipe_name(arch, wanted)
    folder = Path(output or os.path.join("runs", run_name(arch, name, wanted, seed or 0)))
    if resume and not folder.is_dir():
        raise InputError(
            f"nothing to resume: {folder} does not exist; name the run's folder with --output, "
            "or start without --resume"
        )
    # torchrun starts the same command again when a process died.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and recipe is None and (folder / RECIPE).is_file():
        chosen = saved_recipe(folder, overrides)
        config = load_config(folder)
        name, wanted = config.recipe, data or config.data
        seed = saved_manifest(folder)["seed"] if seed is None else seed
    else:
        chosen = load_recipe(name, overrides, folder=recipes)
    return Plan(arch, chosen, name, wanted, seed or 0, folder, resume)


def recipe_name(arch: str, data: str) -> str:
    """The recipe that is meant when none is named: an embedded data set's own, else the architecture's family's."""
    return data.partition("@")[0] if is_embedded(data) else default_recipe(arch)


def run_name(arch: str, recipe: str, data: str, seed: int) -> str:
    """``ARCH-RECIPE-DATA-seedN``: CIFAR-10 and CIFAR-100 under one recipe are two runs.

    DATA is the last part of ``data``; it is not repeated where the recipe has its name.
    """
    stem = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
    place = [] if data == stem else [file_name(os.path.basename(os.path.abspath(data)))]
    return "-".join([file_name(arch), stem, *place, f"seed{seed}"])


def file_name(text: str) -> str:
    """A name as part of a folder's."""
    return re.sub(r"[^A-Za-z0-9._+=,@-]", "-", text)


def start(plan: Plan, world: World, *, workers: int | None = None, argv: Sequence[str] | None = None) -> Trainer:
    """Open the data, build the network, make or check the run folder, and resume if asked to.

    ``workers`` is as for :func:`~edge_sk.training.data.make_shard`, ``argv`` the command, for the manifest. An
    ``InputError`` says what is wrong with data, architecture or folder, or that the checkpoint is not this run's.
    """
    recipe, options = plan.recipe, plan.recipe.data
    if recipe.runtime.sync_bn and world.device.type != "cuda":
        raise InputError(
            f"runtime.sync_bn=true needs GPUs, and this is {world.device.type}: set runtime.sync_bn=false, "
            "and start fewer processes if batch norms then see too few images"
        )
    if world.is_main and not plan.resume:
        _check_new_folder(plan.folder)
    train = open_split(plan.data, "train", options)
    test = open_split(plan.data, "test", options, expected_classes=train.classes)
    num_classes = count_classes(plan.data, train.classes, options)
    model, images = build_model(plan, num_classes)
    augmented = training_transform(recipe.augment, images.input_size, images.interpolation)
    plain = evaluation_transform(images.input_size, images.crop_pct, images.interpolation)
    shard = make_shard(plan.data, world, workers)
    feed = Feed(
        steps_per_epoch(len(train), options.batch_size),
        training_batches(train, augmented, shard, options, seed=plan.seed),
        ordered_batches(test, plain, shard, batch_size=options.eval_batch_size),
    )
    config = RunConfig(
        **images.model_dump(),
        arch=plan.arch,
        num_classes=num_classes,
        classes=train.classes,
        in_chans=images.input_size[0],
        recipe=plan.recipe_name,
        data=plan.data,
        edge_sk_version=__version__,
    )
    # Not the data set's path: data may be moved between the parts of a run.
    identity = {
        "arch": plan.arch,
        "seed": plan.seed,
        "train images": len(train),
        "classes": num_classes,
        "images per batch norm (batch_size / processes / accumulation)": part_size(options, world.size)
        * (world.size if recipe.runtime.sync_bn else 1),
    } | {key: value for key, value in settings(recipe).items() if key not in FREE}
    trainer = Trainer(model, recipe, feed, folder=plan.folder, config=config, world=world, identity=identity)
    warning = trainer.resume() if plan.resume else None
    if world.is_main:
        if warning:
            print(f"warning: {warning}; continuing from the one before it")
        _describe_run(plan, config, trainer.title, argv)
    return trainer


def build_model(plan: Plan, num_classes: int) -> tuple[nn.Module, Preprocessing]:
    """The network with the plan's seed, and how it wants its images.

    Weights to start from bring the mean, the standard deviation and, unless the recipe sets them, the crop and the
    interpolation that they were trained with. A run that goes on from a checkpoint keeps those of its ``config.json``.
    """
    seed_everything(plan.seed, "weights")
    # A run that was stopped before its first checkpoint starts again from the given weights.
    resumed = plan.resume and can_resume(plan.folder)
    given = plan.recipe.checkpoint.init_from
    model = create_model(plan.arch, num_classes=num_classes, init_from=None if resumed else given)
    cfg: dict[str, Any] = dict(model.default_cfg)  # type: ignore[arg-type]
    if resumed and given is not None:
        cfg |= image_fields(load_config(plan.folder).model_dump())
    return model, Preprocessing.of(cfg, plan.recipe.data)


def _check_new_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        remedy = "--resume continues it" if (folder / CHECKPOINT).exists() else "it is not empty"
        raise InputError(f"{folder} exists already: {remedy}, another --output starts a new run")


def _describe_run(plan: Plan, config: RunConfig, title: str, argv: Sequence[str] | None) -> None:
    check_output(plan.folder)
    record = manifest(argv, seed=plan.seed)
    if plan.resume and (plan.folder / MANIFEST).is_file():
        first = saved_manifest(plan.folder)
        record = first | {"resumed": [*first.get("resumed", []), record]}
    write_text(plan.folder / MANIFEST, json.dumps(record, indent=2) + "\n")
    save_config(plan.folder, config)
    # Last: a folder with a recipe can be resumed.
    write_text(plan.folder / RECIPE, f"# The resolved recipe of {title}\n" + recipe_to_yaml(plan.recipe))
