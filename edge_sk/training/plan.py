"""From a plan to a ``Trainer``, of a new run or of one that is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_sk.errors import InputError
from edge_sk.manifest import __version__, manifest
from edge_sk.models import _folders, _libraries, create_model
from edge_sk.models._registry import PREFIXES
from edge_sk.models._weights import image_fields
from edge_sk.quantization import FakeQuantized
from edge_sk.reading import short
from edge_sk.running import evaluating
from edge_sk.training import data
from edge_sk.training.distributed import World
from edge_sk.training.loop import Feed, Trainer
from edge_sk.training.randomness import seed_everything
from edge_sk.training.recipe import FREE, DistillRecipe, Recipe, settings
from edge_sk.training.run import (
    CONFIG,
    INDEX,
    RECIPE,
    RunConfig,
    can_resume,
    check_new,
    describe_run,
    load_config,
    remove_unfinished,
    unfinished,
)
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


def start(
    plan: Plan,
    world: World,
    *,
    workers: int | None = None,
    argv: Sequence[str] | None = None,
    model: nn.Module | None = None,
) -> Trainer:
    """Open the data, build the network, make or check the run folder, and resume if asked to.

    ``workers`` is as for :func:`~edge_sk.training.data.make_shard`, ``argv`` the command, for the manifest. ``model``
    is trained on instead of the plan's network, and its folder cannot be loaded again if it is another architecture. An
    ``InputError`` says what is wrong with data, architecture or folder, or that the checkpoint is not this run's.
    """
    recipe, options = plan.recipe, plan.recipe.data
    if recipe.runtime.sync_bn and world.device.type != "cuda":
        raise InputError(
            f"runtime.sync_bn=true needs GPUs, and this is {world.device.type}: set runtime.sync_bn=false, "
            "and start fewer processes if batch norms then see too few images"
        )
    part = data.part_size(options, world.size)
    if (recipe.augment.mixup or recipe.augment.cutmix) and part % 2:
        raise InputError(
            f"augment.mixup and augment.cutmix mix pairs of images, and a part of the batch has {part}: choose "
            "data.batch_size, processes and data.accumulation so that it is even"
        )
    # Of torchrun's agents, one that replaces a lost one does not know that it continues a run.
    plan = replace(plan, resume=world.any(plan.resume))
    if world.is_main and not plan.resume:
        check_new(plan.folder)
    # Another node reads the main one's index where they share their disks; else it keeps its own.
    indexes = [plan.folder / INDEX, *([plan.folder / INDEX / f"node{world.node}"] if world.node else [])]
    with world.in_turn():
        train, test = data.open_both(plan.data, options, indexes=indexes)
    num_classes = data.count_classes(plan.data, train.classes, options)
    if model is None:
        model, images = build_model(plan, num_classes)
    else:
        images = Preprocessing.of(dict(model.default_cfg), recipe.data)  # type: ignore[call-overload]
    if recipe.quantization.qat:
        model = FakeQuantized(model, images.input_size, mean=images.mean, std=images.std)
        images = Preprocessing.of(model.default_cfg, recipe.data)
    augmented = training_transform(recipe.augment, images.input_size, images.interpolation)
    plain = evaluation_transform(images.input_size, images.crop_pct, images.interpolation)
    shard = data.make_shard(plan.data, world, workers)
    feed = Feed(
        data.steps_per_epoch(len(train), options.batch_size),
        data.training_batches(train, augmented, shard, options, seed=plan.seed),
        data.ordered_batches(test, plain, shard, batch_size=options.eval_batch_size),
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
        qat=recipe.quantization.qat,
    )
    # Not the data set's path: data may be moved between the parts of a run.
    identity = {
        "arch": plan.arch,
        "seed": plan.seed,
        "train images": len(train),
        "classes": num_classes,
        "images per batch norm (batch_size / processes / accumulation)": part
        * (world.size if recipe.runtime.sync_bn else 1),
    } | {key: value for key, value in settings(recipe).items() if key not in FREE}
    teacher = load_teacher(recipe.distill, num_classes, train.classes, images.input_size)
    trainer = Trainer(
        model, recipe, feed, folder=plan.folder, config=config, world=world, identity=identity, teacher=teacher
    )
    notes = trainer.resume() if plan.resume else []
    if world.is_main:
        remove_unfinished(plan.folder)
        for note in notes:
            print(note)
        # Of a finished run only the files of its result are written again.
        if not trainer.finished or not (plan.folder / RECIPE).is_file():
            describe_run(
                plan.folder, config, recipe, manifest(argv, seed=plan.seed) | ({"notes": notes} if notes else {})
            )
    return trainer


def build_model(plan: Plan, num_classes: int) -> tuple[nn.Module, Preprocessing]:
    """The network with the plan's seed, and how it wants its images.

    Weights to start from bring the mean, the standard deviation and, unless the recipe sets them, the crop and the
    interpolation that they were trained with. A run resumed from a checkpoint keeps those of its ``config.json``.
    """
    seed_everything(plan.seed, "weights")
    # A run that was stopped before its first checkpoint starts again from the given weights.
    resumed = plan.resume and can_resume(plan.folder)
    given = plan.recipe.checkpoint.init_from
    model = create_model(plan.arch, num_classes=num_classes, init_from=None if resumed else given)
    cfg: dict[str, Any] = model.default_cfg  # type: ignore[assignment]
    if resumed and given is not None:
        cfg.update(image_fields(load_config(plan.folder).model_dump()))
    return model, Preprocessing.of(cfg, plan.recipe.data)


def load_teacher(
    recipe: DistillRecipe, num_classes: int, classes: list[str] | None, input_size: tuple[int, int, int]
) -> nn.Module | None:
    """The network that a run learns from, on the CPU; its ``pretrained_cfg`` says how it wants its images.

    An ``InputError`` where its weights are missing, of another network or another number of classes, or of a training
    that is not finished, or it cannot take images of the student's size.
    """
    source, arch, options = recipe.teacher, recipe.arch, dict[str, Any]()
    if source is None:
        return None
    weights = _libraries.weights(source)
    if arch is None and source.startswith(PREFIXES):
        arch = source.partition(".")[0]
    elif arch is None:
        given = Path(_folders.local(source))
        folder = given if given.is_dir() else given.parent
        if not (folder / CONFIG).is_file():
            raise InputError(f"distill.teacher={source} does not say which network it holds: set distill.arch")
        arch, options = _folders.saved_network(str(folder))
        if given.is_dir() and (given / RECIPE).is_file() and (epochs := unfinished(given)):
            raise InputError(
                f"the training of distill.teacher={source} is not finished ({epochs}): finish it with --resume"
            )
    if classes and weights.labels and classes != weights.labels:
        raise InputError(f"distill.teacher={source} was trained on other classes than this run's data has")
    options["num_classes"] = num_classes
    model = create_model(arch, **options)
    weights.load(model, network=arch, new_classes=False)
    try:
        with evaluating(model):
            model(torch.zeros(1, *input_size))
    except Exception as error:  # networks of other libraries raise what they like
        raise InputError(
            f"distill.teacher={source} cannot take the student's images, {input_size} ({short(error)}); "
            "set data.input_size"
        ) from None
    return model
