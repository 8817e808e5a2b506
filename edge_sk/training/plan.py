"""From a plan to a ``Trainer``, of a new run or of one that is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edge_sk.errors import InputError
from edge_sk.manifest import __version__, manifest
from edge_sk.models import create_model
from edge_sk.models._weights import image_fields
from edge_sk.training import data
from edge_sk.training.distributed import World
from edge_sk.training.loop import Feed, Trainer
from edge_sk.training.randomness import seed_everything
from edge_sk.training.recipe import FREE, Recipe, settings
from edge_sk.training.run import RunConfig, can_resume, check_new, describe_run, load_config
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
    if world.is_main and not plan.resume:
        check_new(plan.folder)
    train = data.open_split(plan.data, "train", options)
    test = data.open_split(plan.data, "test", options, expected_classes=train.classes)
    num_classes = data.count_classes(plan.data, train.classes, options)
    if model is None:
        model, images = build_model(plan, num_classes)
    else:
        images = Preprocessing.of(dict(model.default_cfg), recipe.data)  # type: ignore[call-overload]
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
    trainer = Trainer(model, recipe, feed, folder=plan.folder, config=config, world=world, identity=identity)
    warning = trainer.resume() if plan.resume else None
    if world.is_main:
        if warning:
            print(f"warning: {warning}; continuing from the one before it")
        describe_run(plan.folder, config, recipe, manifest(argv, seed=plan.seed))
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
    cfg: dict[str, Any] = dict(model.default_cfg)  # type: ignore[arg-type]
    if resumed and given is not None:
        cfg |= image_fields(load_config(plan.folder).model_dump())
    return model, Preprocessing.of(cfg, plan.recipe.data)
