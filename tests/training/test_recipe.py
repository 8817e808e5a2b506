from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from edge_sk.errors import InputError
from edge_sk.reading import parse_yaml
from edge_sk.training.recipe import Recipe, make_recipe, recipe_to_yaml
from recipes.experiments.comparison import recipe_differences
from recipes.planning import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_its_own_yaml(path: Path) -> None:
    recipe = load_recipe(path.stem)
    again = make_recipe(parse_yaml(recipe_to_yaml(recipe), "test"))
    assert again == recipe
    head = path.read_text().split("\ndata:")[0]
    assert "paper" in head.lower()
    assert "Expected" in head


def test_the_light_recipe_is_the_papers() -> None:
    recipe = load_recipe("light")
    assert recipe.optim.weight_decay == 4e-5
    assert not recipe.optim.decay_norm_and_bias
    assert (recipe.optim.name, recipe.optim.momentum, recipe.optim.lr) == ("sgd", 0.9, 0.5)
    assert (recipe.schedule.name, recipe.schedule.epochs) == ("linear", 240)
    assert recipe.data.batch_size == 1024
    assert recipe.augment.scale == (0.2, 1.0)
    assert recipe.loss.label_smoothing == 0.1


def test_the_large_recipe_is_the_papers() -> None:
    recipe = load_recipe("large")
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.data.batch_size) == (0.1, 1e-4, 256)
    assert (recipe.schedule.milestones, recipe.schedule.gamma, recipe.schedule.epochs) == ((30, 60, 90), 0.1, 100)


@pytest.mark.parametrize(("text", "value"), [("4e-5", 4e-5), ("1E3", 1e3), (".5e1", 5.0), ("2.5e-1", 0.25)])
def test_exponents_without_a_dot_are_numbers(text: str, value: float) -> None:
    recipe = make_recipe({}, [f"optim.weight_decay={text}"])
    assert recipe.optim.weight_decay == value
    assert parse_yaml(f"x: {text}", "test") == {"x": value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key optim.lrr \(did you mean optim.lr\?\); known: optim.name, optim.lr, optim.mom"),
        ("optim.learning_rate=1", r"^--set: unknown key optim.learning_rate; known: optim.name, optim.lr"),
        ("lr.lr=1", r"unknown key lr \(did you mean optim.lr\?\); known: data, augment"),
        ("lr=1", "--set 'lr=1' is not section.key=value"),
        ("optim.lr=abc", "optim.lr: Input should be a valid number .got 'abc'"),
        ("optim.lr='0.1'", "optim.lr: Input should be a valid number"),
        ("optim.lr=true", "optim.lr: Input should be a valid number"),
        ("optim.lr=.inf", "finite"),
        ("optim.lr=0", "greater than 0"),
        ("schedule.epochs=1.5", "schedule.epochs: Input should be a valid integer"),
        ("schedule.epochs=true", "schedule.epochs: Input should be a valid integer"),
        ("runtime.compile=1", "runtime.compile: Input should be a valid boolean"),
        ("runtime.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
        ("augment.scale=[0.5, 0.2]", "augment: scale must be .low, high."),
        ("augment.scale=[0.2, 2.0]", "at most 1"),
        ("augment.scale=[a, b]", "augment.scale: Input should be a valid number"),
        ("schedule.name=step", "schedule: milestones belong to name=step"),
        ("schedule.warmup_epochs=100", "leaves nothing of epochs=100"),
        ("optim.lr=[", "--set optim.lr is not YAML"),
    ],
)
def test_a_wrong_field_is_one_line_that_says_what_is_right(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        make_recipe({}, [override])
    assert "\n" not in str(raised.value)


def test_a_wrong_field_is_blamed_on_where_it_stands() -> None:
    with pytest.raises(InputError, match=r"^mine.yaml: optim.lr: .*; --set: schedule.epochs: "):
        make_recipe({"optim": {"lr": "fast"}}, ["schedule.epochs=many"], origin="mine.yaml")
    with pytest.raises(InputError, match=r"^mine.yaml: optim.lr"):
        make_recipe({"optim": {"lr": "fast"}}, ["optim.momentum=0.9"], origin="mine.yaml")


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="no recipe 'lihgt': known are cifar, digits, finetune, large, light"):
        load_recipe("lihgt")


def test_a_recipe_file_may_be_given_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  lr: 3e-2\n")
    assert load_recipe(str(path)).optim.lr == 0.03
    path.write_text("- a list\n")
    with pytest.raises(InputError, match="must hold sections"):
        load_recipe(str(path))
    path.write_text("optim: 3\n")
    with pytest.raises(InputError, match="optim"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text in UTF-8"):
        load_recipe(str(path))


def test_recipes_are_frozen_and_compared_by_key() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError):
        recipe.optim.lr = 1.0  # type: ignore[misc]
    assert recipe_differences(recipe, make_recipe({}, ["optim.lr=0.5"])) == ["optim.lr: 0.1 -> 0.5"]
