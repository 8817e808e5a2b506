"""The learning rate of every step is the one that the recipe names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edge_sk.errors import InputError
from edge_sk.models import create_model
from edge_sk.training.optimization import make_optimizer, make_scheduler
from edge_sk.training.recipe import OptimRecipe, ScheduleRecipe
from recipes.planning import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = 10  # per epoch


def rates(recipe: ScheduleRecipe, *, lr: float = 1.0, steps_per_epoch: int = STEPS) -> list[float]:
    """The rate of each step of a run, as the engine sets it."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    schedule = make_scheduler(optimizer, recipe, steps_per_epoch=steps_per_epoch)
    out = []
    for step in range(recipe.epochs * steps_per_epoch):
        schedule.step_update(step)
        out.append(optimizer.param_groups[0]["lr"])
    return out


def schedule(**fields: Any) -> ScheduleRecipe:
    return ScheduleRecipe(epochs=9, **fields)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0])
def test_the_rate_drops_with_the_first_step_after_a_milestone_s_epochs(warmup: float) -> None:
    got = rates(schedule(name="step", milestones=(3, 6), warmup_epochs=warmup))
    first = int(warmup * STEPS)
    expected = [1.0] * (3 * STEPS) + [0.1] * (3 * STEPS) + [0.01] * (3 * STEPS)
    assert got[first:] == pytest.approx(expected[first:])


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_a_warm_up_rises_from_one_step_s_share_and_is_part_of_the_run(name: str) -> None:
    got = rates(schedule(name=name, warmup_epochs=2))
    assert got[0] == pytest.approx(1 / 20)
    assert got[: 2 * STEPS] == sorted(set(got[: 2 * STEPS]))
    assert max(got) == got[2 * STEPS] == 1


@pytest.mark.parametrize("warmup", [0, 2])
def test_linear_and_cosine_end_one_step_above_0(warmup: int) -> None:
    falling = (9 - warmup) * STEPS
    linear = rates(schedule(name="linear", warmup_epochs=warmup))[-falling:]
    assert linear == pytest.approx([1 - i / falling for i in range(falling)])
    cosine = rates(schedule(name="cosine", warmup_epochs=warmup))[-falling:]
    assert cosine == pytest.approx([(1 + math.cos(math.pi * i / falling)) / 2 for i in range(falling)])


def test_the_light_recipe_falls_in_a_line_over_all_its_epochs() -> None:
    recipe = load_recipe("light")
    got = rates(recipe.schedule, lr=recipe.optim.lr)
    assert got == pytest.approx([0.5 * (1 - i / 2400) for i in range(2400)])


def test_the_large_recipe_drops_at_epochs_30_60_90() -> None:
    got = rates(load_recipe("large").schedule)
    assert [step for step in range(1, len(got)) if got[step] != got[step - 1]] == [300, 600, 900]


def test_a_warm_up_that_rounds_to_the_whole_run_leaves_a_step() -> None:
    assert rates(ScheduleRecipe(epochs=1, name="cosine", warmup_epochs=0.9), steps_per_epoch=2) == [1.0, 1.0]


def test_betas_and_eps_are_the_optimizer_s_or_are_refused() -> None:
    (group, *_) = make_optimizer(nn.Linear(2, 2), OptimRecipe(name="adamw", betas=(0.8, 0.99), eps=1e-3)).param_groups
    assert (group["betas"], group["eps"]) == ((0.8, 0.99), 1e-3)
    (default, *_) = make_optimizer(nn.Linear(2, 2), OptimRecipe(name="adamw")).param_groups
    assert (default["betas"], default["eps"]) == ((0.9, 0.999), 1e-8)
    with pytest.raises(InputError, match=r"optim.name=sgd does not take optim.betas=\(0.8, 0.99\): set it"):
        make_optimizer(nn.Linear(2, 2), OptimRecipe(betas=(0.8, 0.99)))
    with pytest.raises(InputError, match=r"optim.name=adamw does not take optim.betas=\(0.8, 0.9, 0.99\)"):
        make_optimizer(nn.Linear(2, 2), OptimRecipe(name="adamw", betas=(0.8, 0.9, 0.99)))


@pytest.mark.parametrize("arch", ["sk_shufflenetv2_0.5", "sk_mobilenetv3_small_1.0"])
def test_layer_decay_lowers_the_rate_from_the_classifier_to_the_stem(arch: str) -> None:
    model = create_model(arch, num_classes=10)
    optimizer = make_optimizer(model, OptimRecipe(layer_decay=0.5, lr=0.4))
    schedule = make_scheduler(optimizer, ScheduleRecipe(epochs=1, name="constant"), steps_per_epoch=1)
    schedule.step_update(0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == set(names.values())
    first, *_, last = (found[name] for name in names.values())
    assert last == max(found.values()) == 0.4
    assert first == min(found.values()) < 0.1
    assert all(math.log2(0.4 / rate) == pytest.approx(round(math.log2(0.4 / rate))) for rate in found.values())
