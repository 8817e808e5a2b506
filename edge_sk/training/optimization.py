"""Build the optimizer and the learning-rate schedule of a recipe; both are timm's."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from edge_sk.errors import InputError
from edge_sk.reading import short
from edge_sk.training.recipe import OptimRecipe, ScheduleRecipe


def make_optimizer(model: nn.Module, recipe: OptimRecipe) -> torch.optim.Optimizer:
    """An optimizer of timm's; weight decay on weights of two or more dimensions, unless the recipe says otherwise."""
    name = recipe.name.lower()
    if recipe.nesterov and name != "sgd":
        raise InputError(f"optim.nesterov goes with optim.name=sgd, not {recipe.name}")
    if name == "sgd" and not recipe.nesterov:
        name = "momentum"  # timm's "sgd" is Nesterov's
    given: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.eps}
    given = {key: value for key, value in given.items() if value is not None}
    decay: dict[str, Any] = {"weight_decay": recipe.weight_decay, "filter_bias_and_bn": not recipe.decay_norm_and_bias}

    def make(model: nn.Module, **layers: Any) -> torch.optim.Optimizer:
        return create_optimizer_v2(model, opt=name, lr=recipe.lr, momentum=recipe.momentum, **decay, **given, **layers)

    try:
        # Some, adahessian for example, are made without complaint and fail in their first step.
        probe = nn.Linear(2, 2)
        optimizer = make(probe)
        probe(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer = make(model, layer_decay=recipe.layer_decay)
    except Exception as error:  # timm's optimizers are by many authors
        raise InputError(
            f"optim.name={short(repr(recipe.name))} cannot be used ({short(error)}); try sgd, adamw or rmsproptf"
        ) from None
    for field, value in given.items():
        if optimizer.param_groups[0].get(field) != value:  # timm drops what an optimizer has not
            raise InputError(f"optim.name={recipe.name} does not take optim.{field}={value}: set it to null")
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: ScheduleRecipe, *, steps_per_epoch: int) -> Scheduler:
    """A schedule with ``step_update(step)``: the learning rates of a step depend on its number alone, counted from 0.

    A warm-up lies inside ``recipe.epochs``: linear and cosine fall to 0 from its end to the end of the run, and
    milestones are epochs of the run. The first step after a milestone's epochs is the first with the lower rate.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)
    lr = float(optimizer.param_groups[0]["lr"])
    # The first step of a warm-up is not wasted on a rate of 0.
    common = {"t_in_epochs": False, "warmup_t": warmup, "warmup_lr_init": lr / warmup if warmup else 0.0}
    if recipe.name == "linear":
        return PolyLRScheduler(optimizer, t_initial=total - warmup, power=1.0, warmup_prefix=True, **common)
    if recipe.name == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total - warmup, warmup_prefix=True, **common)
    # timm lowers the rate one step before its milestone, and by default counts milestones from the warm-up's end.
    milestones = [milestone * steps_per_epoch + 1 for milestone in recipe.milestones]
    return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=recipe.gamma, warmup_prefix=False, **common)
